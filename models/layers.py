"""Building blocks of the transformers: norms, attention, feed-forward, adaLN, time.

B batch, N tokens, C width, H heads, D head width.
"""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.positions import rotate


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned weight; the statistic is taken in float32."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        weight: Tensor = self.weight
        if weight.dtype != x.dtype:  # under autocast; the fused kernel wants one dtype
            weight = weight.to(x.dtype)
        return functional.rms_norm(x, weight.shape, weight, self.eps)


class SwiGLU(nn.Module):
    """w3(silu(first half of w12 x) * second half)."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden_width)
        self.w3 = nn.Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        hidden: Tensor = functional.silu(gate) * value
        out: Tensor = self.w3(hidden)
        return out


def swiglu_width(width: int) -> int:
    """Hidden width that costs what an MLP of ratio 4 costs: two thirds of it."""
    return int(2 / 3 * 4 * width)


class MLP(nn.Module):
    """fc2(gelu(fc1 x)), with the exact (erf) GELU."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class Attention(nn.Module):
    """Multi-head self-attention, by default with per-head RMS-normed queries and keys."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        context_width: int | None = None,
        *,
        qk_norm: bool = True,
    ) -> None:
        """`context_width`: total width of the heads, where it differs from the tokens' width."""
        super().__init__()
        inner = context_width or width
        if inner % num_heads:
            raise ValueError(f"attention width {inner} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * inner)
        self.proj = nn.Linear(inner, width)
        self.q_norm = RMSNorm(inner // num_heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(inner // num_heads) if qk_norm else nn.Identity()

    def project(self, x: Tensor, table: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, H, N, D) of tokens (B, N, C), turned by `table`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H, N, D)
        q, k = self.q_norm(q), self.k_norm(k)
        if table is not None:
            q, k = rotate(q, table), rotate(k, table)
        return q, k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, C) output; mask (B or 1, 1, N or 1, keys) is True where a query may look."""
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        projected: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return projected

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C), every token sees every token."""
        q, k, v = self.project(x, table)
        return self.attend(q, k, v)


BlockStyle: TypeAlias = Literal["rms-swiglu", "layer-gelu"]
"""RMSNorm, normed queries and keys, SwiGLU; or LayerNorm and GELU, as in the original ViT."""


class Block(nn.Module):
    """Pre-norm transformer block whose two branches start at zero, so it starts as identity.

    Args:
        width, num_heads: of the tokens and the attention.
        style: norms, attention and feed-forward.
        hidden_width: of the feed-forward; absent: 4 * width, or the SwiGLU of that cost.
        norm_eps: of both norms.
        skip_projection: a learned linear map instead of the identity around the attention.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        style: BlockStyle = "rms-swiglu",
        hidden_width: int | None = None,
        norm_eps: float = 1e-6,
        skip_projection: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = _norm(style, width, norm_eps)
        self.attn = Attention(width, num_heads, qk_norm=style == "rms-swiglu")
        self.skip = nn.Linear(width, width) if skip_projection else nn.Identity()
        self.norm2 = _norm(style, width, norm_eps)
        self.mlp: nn.Module
        if style == "rms-swiglu":
            self.mlp = SwiGLU(width, hidden_width or swiglu_width(width))
            last = self.mlp.w3
        else:
            self.mlp = MLP(width, hidden_width or 4 * width)
            last = self.mlp.fc2
        for layer in (self.attn.proj, last):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = self.skip(x) + self.attn(self.norm1(x), table)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def _norm(style: BlockStyle, width: int, eps: float) -> nn.Module:
    return RMSNorm(width, eps) if style == "rms-swiglu" else nn.LayerNorm(width, eps)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive norm: x (B, N, C), shift and scale (B, C)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class TimestepEmbedding(nn.Module):
    """Sinusoids of t in [0, 1] through a small MLP. Source: DiT (arXiv 2212.09748)."""

    def __init__(self, width: int, num_frequencies: int = 128) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * num_frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )
        exponents = torch.arange(num_frequencies).float() / num_frequencies
        # t runs over [0, 1], DiT's table over 0..1000: the factor 1000 keeps its resolution.
        self.register_buffer(
            "frequencies", 1000 * torch.exp(-math.log(10000.0) * exponents), persistent=False
        )

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B, width)."""
        frequencies = self.frequencies
        assert isinstance(frequencies, Tensor)
        angles = t.float()[:, None] * frequencies
        out: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return out
