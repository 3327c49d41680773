"""Exponential moving average of weights."""

import copy

import torch
from torch import nn


class Ema:
    """Holds an averaged copy of a module; early steps average over what there is.

    After step n the decay is min(decay, (1 + n) / (10 + n)), so a short run is not dominated by
    its initial weights.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Blend in the weights that the module has after `step` (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged = list(self.module.parameters())
        torch._foreach_lerp_(averaged, list(module.parameters()), 1 - decay)
