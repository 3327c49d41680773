"""Building blocks of the transformers: norms, rotary positions, attention, feed-forward, adaLN.

B batch, N tokens, C width, H heads, D head width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned weight; the statistic is taken in float32."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


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


def rotary_table(side: int, head_width: int, theta: float = 10000.0) -> Tensor:
    """(2, side * side, head_width) cosines and sines of axial rotary positions.

    The first half of a head turns with the row, the second with the column; frequency k is
    theta ** (-2k / (head_width / 2)), each used by an adjacent pair of channels.
    Source: LightningDiT (arXiv 2501.01423), vision_rotary_embedding.
    """
    if head_width % 4:
        raise ValueError(f"head_width {head_width} is not divisible by 4")
    half = head_width // 2
    frequencies = theta ** (-torch.arange(0, half, 2).float() / half)
    angles = torch.arange(side).float()[:, None] * frequencies  # (side, half / 2)
    angles = angles.repeat_interleave(2, dim=-1)  # (side, half)
    rows = angles[:, None].expand(side, side, half)
    columns = angles[None, :].expand(side, side, half)
    grid = torch.cat([rows, columns], dim=-1).reshape(side * side, head_width)
    return torch.stack([grid.cos(), grid.sin()])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Apply rotary positions: x (..., N, D), table (2, N, D)."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return x * table[0] + turned * table[1]


class Attention(nn.Module):
    """Multi-head self-attention with per-head RMS-normed queries and keys."""

    def __init__(self, width: int, num_heads: int, context_width: int | None = None) -> None:
        """`context_width`: total width of the heads, where it differs from the tokens' width."""
        super().__init__()
        inner = context_width or width
        if inner % num_heads:
            raise ValueError(f"attention width {inner} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * inner)
        self.proj = nn.Linear(inner, width)
        self.q_norm = RMSNorm(inner // num_heads)
        self.k_norm = RMSNorm(inner // num_heads)

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


class Block(nn.Module):
    """Pre-norm transformer block whose two branches start at zero, so it starts as identity."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = Attention(width, num_heads)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, swiglu_width(width))
        nn.init.zeros_(self.attn.proj.weight)
        nn.init.zeros_(self.attn.proj.bias)
        nn.init.zeros_(self.mlp.w3.weight)
        nn.init.zeros_(self.mlp.w3.bias)

    def forward(self, x: Tensor, table: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.attn(self.norm1(x), table)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


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


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, C, h, w) -> (B, h/p * w/p, p * p * C), rows first, channels fastest."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(tokens: Tensor, patch: int, channels: int) -> Tensor:
    """Inverse of `patchify` for square grids: (B, N, p * p * C) -> (B, C, h, w)."""
    b, n, _ = tokens.shape
    side = math.isqrt(n)
    x = tokens.reshape(b, side, side, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, channels, side * patch, side * patch)
