"""The variational bridge: tokens of the encoder <-> compact Gaussian latents.

B batch, N tokens, C token width, D latent width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers import Block


@dataclass(frozen=True, kw_only=True)
class BridgeConfig:
    """Widths and depths of both halves."""

    token_width: int = 192
    latent_width: int = 32
    num_heads: int = 6
    encoder_depth: int = 1
    decoder_depth: int = 3

    def __post_init__(self) -> None:
        if self.token_width % self.num_heads:
            raise ValueError(
                f"token_width {self.token_width} is not divisible by num_heads {self.num_heads}"
            )
        if self.latent_width > self.token_width:
            raise ValueError(
                f"latent_width {self.latent_width} exceeds token_width {self.token_width}"
            )


@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian over latents; mean and logvar have one shape, batch first."""

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw, noise from `generator` on the CPU."""
        noise = torch.randn(self.mean.shape, generator=generator).to(self.mean)
        return self.mean + (0.5 * self.logvar).exp() * noise

    def kl(self) -> Tensor:
        """KL to the standard normal in nats, summed over all but the batch: (B,)."""
        per_dim = self.mean.square() + self.logvar.exp() - 1 - self.logvar
        return 0.5 * per_dim.flatten(1).sum(1)


class BridgeEncoder(nn.Module):
    """Tokens to the posterior over latents."""

    def __init__(self, config: BridgeConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(config.token_width, config.num_heads) for _ in range(config.encoder_depth)
        )
        self.to_moments = nn.Linear(config.token_width, 2 * config.latent_width)

    def forward(self, tokens: Tensor) -> Posterior:
        """(B, N, C) -> posterior over (B, N, D); logvar clamped to [-30, 20]."""
        for block in self.blocks:
            tokens = block(tokens)
        mean, logvar = self.to_moments(tokens).chunk(2, dim=-1)
        return Posterior(mean, logvar.clamp(-30, 20))


class BridgeDecoder(nn.Module):
    """Latents back to tokens."""

    def __init__(self, config: BridgeConfig) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.latent_width, config.token_width)
        self.blocks = nn.ModuleList(
            Block(config.token_width, config.num_heads) for _ in range(config.decoder_depth)
        )

    def forward(self, latents: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, C)."""
        x: Tensor = self.in_proj(latents)
        for block in self.blocks:
            x = block(x)
        return x
