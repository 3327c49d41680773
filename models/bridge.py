"""The variational bridge: tokens of the encoder <-> compact Gaussian latents.

B batch, N tokens, C token width, D latent width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.layers import Block, BlockStyle

LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True, kw_only=True)
class BridgeConfig:
    """Widths and depths of both halves.

    kind: identity has no weights, its latents are the tokens; the fields below latent_width are
    then unused.
    encoder_hidden_width: of the encoder half's feed-forward, by default that of the decoder half;
    skip_projection: a learned linear map around the encoder's attention; out_projection: a last
    linear layer of the decoder half.
    """

    kind: Literal["transformer", "identity"] = "transformer"
    token_width: int = 192
    latent_width: int = 32
    num_heads: int = 6
    encoder_depth: int = 1
    decoder_depth: int = 3
    style: BlockStyle = "rms-swiglu"
    norm_eps: float = 1e-6
    encoder_hidden_width: int | None = None
    skip_projection: bool = False
    out_projection: bool = False

    def __post_init__(self) -> None:
        if self.token_width % self.num_heads:
            raise ValueError(
                f"token_width {self.token_width} is not divisible by num_heads {self.num_heads}"
            )
        if self.latent_width > self.token_width:
            raise ValueError(
                f"latent_width {self.latent_width} exceeds token_width {self.token_width}"
            )
        if self.kind not in ("transformer", "identity"):
            raise ValueError(f"kind must be transformer or identity, got {self.kind!r}")
        if self.kind == "identity" and self.latent_width != self.token_width:
            raise ValueError(
                f"an identity bridge needs latent_width {self.latent_width} = token_width "
                f"{self.token_width}"
            )


@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian over latents; mean and logvar have one shape, batch first."""

    mean: Tensor
    logvar: Tensor

    def mode(self) -> Tensor:
        """The most probable latents: the mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw; the noise is made where `generator` lives, by default on the CPU."""
        device = "cpu" if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device).to(self.mean)
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
            Block(
                config.token_width,
                config.num_heads,
                style=config.style,
                hidden_width=config.encoder_hidden_width,
                norm_eps=config.norm_eps,
                skip_projection=config.skip_projection,
            )
            for _ in range(config.encoder_depth)
        )
        self.to_moments = nn.Linear(config.token_width, 2 * config.latent_width)

    def forward(self, tokens: Tensor) -> Posterior:
        """(B, N, C) -> posterior over (B, N, D); logvar clamped to LOGVAR_RANGE."""
        for block in self.blocks:
            tokens = block(tokens)
        mean, logvar = self.to_moments(tokens).chunk(2, dim=-1)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))


class BridgeDecoder(nn.Module):
    """Latents back to tokens."""

    def __init__(self, config: BridgeConfig) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.latent_width, config.token_width)
        self.blocks = nn.ModuleList(
            Block(
                config.token_width, config.num_heads, style=config.style, norm_eps=config.norm_eps
            )
            for _ in range(config.decoder_depth)
        )
        width = config.token_width
        self.out_proj = nn.Linear(width, width) if config.out_projection else nn.Identity()

    def forward(self, latents: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, C)."""
        x: Tensor = self.in_proj(latents)
        for block in self.blocks:
            x = block(x)
        tokens: Tensor = self.out_proj(x)
        return tokens


class IdentityBridgeEncoder(nn.Module):
    """Tokens as latents: for tokenizers without a bridge, such as RAE (arXiv 2510.11690)."""

    def forward(self, tokens: Tensor) -> Posterior:
        """(B, N, C) -> posterior over (B, N, C): the tokens, with the smallest variance."""
        return Posterior(tokens, torch.full_like(tokens, LOGVAR_RANGE[0]))


class IdentityBridgeDecoder(nn.Module):
    """Latents as tokens."""

    def forward(self, latents: Tensor) -> Tensor:
        """(B, N, C), unchanged."""
        return latents


def build_bridge(config: BridgeConfig) -> tuple[nn.Module, nn.Module]:
    """Both halves: tokens -> Posterior, and latents -> tokens."""
    if config.kind == "identity":
        return IdentityBridgeEncoder(), IdentityBridgeDecoder()
    return BridgeEncoder(config), BridgeDecoder(config)
