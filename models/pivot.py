"""The pivot replica: a frozen copy of the pretrained encoder that anchors training."""

import copy
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional


class PivotReplica(nn.Module):
    """Holds the initial encoder; always in eval mode, never with gradients."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode whatever the parent does."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Tokens (B, N, C) of the frozen encoder."""
        tokens: Tensor = self.encoder(images)
        return tokens


def pivot_loss(tokens: Tensor, pivot_tokens: Tensor) -> Tensor:
    """Mean squared distance over batch, tokens and channels, on clean tokens (arXiv 2603.19206)."""
    return functional.mse_loss(tokens, pivot_tokens)
