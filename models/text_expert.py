"""The text expert of TextDenoiser, layer by layer: a small one, or that of a pretrained model.

R rows, T prompt tokens, C text width, H heads, D head width, N keys.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers import Attention, RMSNorm, SwiGLU, swiglu_width
from models.positions import rotary_table


class TextExpertBlock(nn.Module):
    """One layer of the small text expert, whose heads are those of the image expert."""

    def __init__(self, width: int, num_heads: int, inner_width: int) -> None:
        """`width`: of the text tokens; `inner_width`: of all heads together."""
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attn = Attention(width, num_heads, context_width=inner_width)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, swiglu_width(width))

    def project(self, text: Tensor, table: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (R, H, T, D) of tokens (R, T, C), turned by `table`."""
        return self.attn.project(self.norm1(text), table)

    def shown_keys(self, k: Tensor, num_source: int) -> Tensor:
        """Keys (R, H, N, D) as the image expert sees them: these very ones."""
        del num_source
        return k

    def finish(self, text: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Tokens (R, T, C) after the layer; keys and values (R, H, N, D), mask (R, 1, T, N)."""
        text = text + self.attn.attend(q, k, v, mask)
        out: Tensor = text + self.mlp(self.norm2(text))
        return out


class PromptEncoder(nn.Module):
    """Layers in which every word of the prompt sees every other, before the joint ones.

    A causal word cannot know what is said of it later ("a star to the left of a circle"), so which
    thing stands where is hard to tell from it. Starts as identity, so that a trained denoiser can
    be given one.
    """

    table: Tensor

    def __init__(self, width: int, num_heads: int, depth: int, max_tokens: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TextExpertBlock(width, num_heads, width) for _ in range(depth))
        table = torch.zeros(2, max_tokens, 0)
        if depth:
            # Of a grid of one row, where the second half of twice the width turns with the column.
            head_width = width // num_heads
            table = rotary_table((1, max_tokens), 2 * head_width)[..., head_width:]
        self.register_buffer("table", table, persistent=False)

    def start_as_identity(self) -> None:
        """Zero the outputs of both branches of every layer."""
        for block in self.blocks:
            assert isinstance(block, TextExpertBlock)
            for layer in (block.attn.proj, block.mlp.w3):
                nn.init.zeros_(layer.weight)

    def forward(self, text: Tensor, see: Tensor) -> Tensor:
        """(R, T, C) -> (R, T, C); see (R, 1, T, T) is True where a word may look."""
        for block in self.blocks:
            assert isinstance(block, TextExpertBlock)
            q, k, v = block.project(text, self.table[:, : text.shape[1]])
            text = block.finish(text, q, k, v, see)
        return text


class Qwen2Block(nn.Module):
    """One layer of Qwen2, its keys and values repeated to the image expert's heads.

    Source: Qwen2 (arXiv 2407.10671); transformers' Qwen2DecoderLayer, which a test compares with.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        inner_width: int,
        *,
        key_heads: int,
        hidden_width: int,
        eps: float,
    ) -> None:
        """`key_heads`: those of keys and values; `hidden_width`: of the feed-forward."""
        super().__init__()
        self.num_heads = num_heads
        head_width = inner_width // num_heads
        self.norm1 = RMSNorm(width, eps)
        self.query = nn.Linear(width, inner_width)
        self.key = nn.Linear(width, key_heads * head_width)
        self.value = nn.Linear(width, key_heads * head_width)
        self.out = nn.Linear(inner_width, width, bias=False)
        # Pretrained keys are not normed, and large; the image expert's queries are made for those
        # that are, as its own keys.
        self.key_norm = RMSNorm(head_width)
        self.norm2 = RMSNorm(width, eps)
        self.gate = nn.Linear(width, hidden_width, bias=False)
        self.up = nn.Linear(width, hidden_width, bias=False)
        self.down = nn.Linear(hidden_width, width, bias=False)

    def project(self, text: Tensor, table: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (R, H, T, D) of tokens (R, T, C), turned by `table`."""
        assert table is not None, "this model has no other positions than rotary ones"
        text = self.norm1(text)
        layers = (self.query, self.key, self.value)
        heads = (layer(text).unflatten(-1, (-1, table.shape[-1])) for layer in layers)
        q, k, v = (part.transpose(1, 2) for part in heads)  # (R, its heads, T, D)
        q, k = _rotate_halves(q, table), _rotate_halves(k, table)
        times = self.num_heads // k.shape[1]
        return q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)

    def shown_keys(self, k: Tensor, num_source: int) -> Tensor:
        """Keys (R, H, N, D) as the image expert sees them: all but the source's own are normed."""
        source, text = k[:, :, :num_source], k[:, :, num_source:]
        return torch.cat([source, self.key_norm(text)], dim=2)

    def finish(self, text: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Tokens (R, T, C) after the layer; keys and values (R, H, N, D), mask (R, 1, T, N)."""
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        text = text + self.out(seen.transpose(1, 2).flatten(2))
        normed = self.norm2(text)
        out: Tensor = text + self.down(functional.silu(self.gate(normed)) * self.up(normed))
        return out


def sequence_table(length: int, head_width: int, theta: float) -> Tensor:
    """(2, T, D) cosines and sines of 1-D rotary positions 0, 1, ...; both halves of a head alike.

    Channel k turns with channel k + D / 2, as in transformers, not with its neighbour.
    """
    frequencies = theta ** (-torch.arange(0, head_width, 2).float() / head_width)
    angles = torch.arange(length).float()[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()])


def _rotate_halves(x: Tensor, table: Tensor) -> Tensor:
    """x (..., T, D), table (2, T, D) of `sequence_table`."""
    first, second = x.chunk(2, dim=-1)
    return (x * table[0] + torch.cat([-second, first], dim=-1) * table[1]).to(x.dtype)
