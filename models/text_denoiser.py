"""TextDenoiser: text-to-image and instruction edits in one two-expert transformer.

The sequence is [clean source latents | prompt | noisy target latents]. Source and target go
through the image expert, the prompt through the text expert; attention is shared. Source and
prompt never see the target, so `prefill` computes their keys and values once per request.
Source: BAGEL-style mixture of transformers, as RPiAE's text-to-image setup (arXiv 2603.19206).

R rows, C latent channels, S source tokens = target tokens, T prompt tokens, N = S + T, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers import (
    Attention,
    RMSNorm,
    SwiGLU,
    TimestepEmbedding,
    modulate,
    swiglu_width,
)
from models.positions import patchify, rotary_table, unpatchify
from models.text import PAD_ID


@dataclass(frozen=True, kw_only=True)
class TextDenoiserConfig:
    """Sizes of both experts; heads are shared, so both project to num_heads * head width."""

    kind: Literal["text"] = "text"
    latent_channels: int = 32
    latent_side: int = 8
    patch_size: int = 2
    width: int = 192
    depth: int = 6
    num_heads: int = 4
    text_width: int = 128
    vocabulary_size: int = 256
    max_prompt_tokens: int = 24

    def __post_init__(self) -> None:
        if self.latent_side % self.patch_size:
            raise ValueError(
                f"latent_side {self.latent_side} is not divisible by patch_size {self.patch_size}"
            )
        if self.width % (4 * self.num_heads):
            raise ValueError(
                f"width {self.width} is not divisible by 4 * num_heads {4 * self.num_heads}"
            )

    @property
    def grid(self) -> int:
        """Tokens along one side of the latents."""
        return self.latent_side // self.patch_size

    @property
    def num_image_tokens(self) -> int:
        """Tokens of one image, S."""
        return self.grid**2

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        return (self.latent_channels, self.latent_side, self.latent_side)


@dataclass(frozen=True)
class TextContext:
    """Keys and values of prompt and source, one row per model row; see `models.context.Context`.

    keys, values: (R, depth, heads, N, head width), zero where absent; mask: (R, N), True where a
    key exists; source: (R, S, W), source latents embedded at the target's places, zero without.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    source: Tensor

    @property
    def num_rows(self) -> int:
        """R."""
        return self.mask.shape[0]

    def select(self, rows: Tensor | Sequence[int]) -> Self:
        """The context of some rows, in that order."""
        index = torch.as_tensor(rows, device=self.mask.device)
        return type(self)(
            self.keys[index], self.values[index], self.mask[index], self.source[index]
        )

    @classmethod
    def cat(cls, contexts: Sequence[Self]) -> Self:
        """Rows of several contexts, one after another."""
        return cls(
            torch.cat([c.keys for c in contexts]),
            torch.cat([c.values for c in contexts]),
            torch.cat([c.mask for c in contexts]),
            torch.cat([c.source for c in contexts]),
        )


class TextExpertBlock(nn.Module):
    """The text expert's part of one layer."""

    def __init__(self, config: TextDenoiserConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.text_width)
        self.attn = Attention(config.text_width, config.num_heads, context_width=config.width)
        self.norm2 = RMSNorm(config.text_width)
        self.mlp = SwiGLU(config.text_width, swiglu_width(config.text_width))


class ImageExpertBlock(nn.Module):
    """The image expert's part of one layer: adaLN-zero with a shared modulation plus a table."""

    def __init__(self, config: TextDenoiserConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width)
        self.attn = Attention(config.width, config.num_heads)
        self.norm2 = RMSNorm(config.width)
        self.mlp = SwiGLU(config.width, swiglu_width(config.width))
        self.modulation = nn.Parameter(torch.zeros(6, config.width))

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        rotary: Tensor,
        context: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens after the layer, and this layer's own keys and values.

        x (R, S, W); modulation (R, 6, W); context: keys and values (R, H, N, D) seen beside the
        own ones; mask (R, 1, 1, N + S).
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = (modulation + self.modulation).unbind(1)
        q, k, v = self.attn.project(modulate(self.norm1(x), shift1, scale1), rotary)
        all_keys, all_values = k, v
        if context is not None:
            all_keys = torch.cat([context[0], k], dim=2)
            all_values = torch.cat([context[1], v], dim=2)
        x = x + gate1[:, None] * self.attn.attend(q, all_keys, all_values, mask)
        x = x + gate2[:, None] * self.mlp(modulate(self.norm2(x), shift2, scale2))
        return x, k, v


class TextDenoiser(nn.Module):
    """Velocity of noisy latents, given a prompt and, for edits, the source's latents."""

    rotary: Tensor

    def __init__(self, config: TextDenoiserConfig) -> None:
        super().__init__()
        self.config = config
        width, token_width = config.width, config.latent_channels * config.patch_size**2
        self.embed = nn.Linear(token_width, width)
        self.embed_source = nn.Linear(token_width, width)
        self.position = nn.Parameter(0.02 * torch.randn(config.num_image_tokens, width))
        self.words = nn.Embedding(config.vocabulary_size, config.text_width)
        self.word_position = nn.Parameter(
            0.02 * torch.randn(config.max_prompt_tokens, config.text_width)
        )
        self.image_blocks = nn.ModuleList(ImageExpertBlock(config) for _ in range(config.depth))
        self.text_blocks = nn.ModuleList(TextExpertBlock(config) for _ in range(config.depth))
        self.time = TimestepEmbedding(width)
        self.to_modulation = nn.Linear(width, 6 * width)
        self.norm = RMSNorm(width)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.to_velocity = nn.Linear(width, token_width)
        square = (config.grid, config.grid)
        self.register_buffer(
            "rotary", rotary_table(square, width // config.num_heads), persistent=False
        )
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.words.weight, std=0.5)
        # adaLN-zero: every block starts as identity and the predicted velocity at zero.
        for layer in (self.to_modulation, self.final_modulation, self.to_velocity):
            nn.init.zeros_(layer.weight)

    def prefill(self, prompt_tokens: Tensor, source_latents: Tensor | None = None) -> TextContext:
        """Keys and values of prompt and source, computed once per request.

        Args:
            prompt_tokens: (R, T) int64 ids from `PromptTokenizer`, padded with 0.
            source_latents: (R, C, h, w) clean normalized latents for edits, or None.

        Raises:
            ValueError: more tokens than max_prompt_tokens, or source latents of another shape.
        """
        config = self.config
        num_rows, num_tokens = prompt_tokens.shape
        if num_tokens > config.max_prompt_tokens:
            raise ValueError(
                f"{num_tokens} prompt tokens exceed max_prompt_tokens {config.max_prompt_tokens}"
            )
        images = None
        source = self.position.new_zeros(num_rows, config.num_image_tokens, config.width)
        if source_latents is not None:
            if tuple(source_latents.shape) != (num_rows, *config.latent_shape):
                raise ValueError(
                    f"source_latents must be {(num_rows, *config.latent_shape)}, "
                    f"got {tuple(source_latents.shape)}"
                )
            source = self.embed_source(patchify(source_latents, config.patch_size))
            images = source + self.position
        # Columns that are padding in every row cost nothing; the context is padded again below.
        # The meta device has no values, so there every column counts.
        length = num_tokens
        if not prompt_tokens.is_meta:
            length = max(1, int((prompt_tokens != PAD_ID).sum(1).max()))
        text_mask = prompt_tokens[:, :length] != PAD_ID
        keys, values = self._prefill_layers(prompt_tokens[:, :length], text_mask, images)
        padding = config.max_prompt_tokens - length
        missing = 0 if images is not None else config.num_image_tokens
        mask = functional.pad(text_mask, (config.num_image_tokens, padding), value=False)
        mask[:, : config.num_image_tokens] = images is not None
        pads = (0, 0, missing, padding)  # the token axis is the last but one
        return TextContext(functional.pad(keys, pads), functional.pad(values, pads), mask, source)

    def _prefill_layers(
        self, prompt_tokens: Tensor, text_mask: Tensor, images: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (R, depth, H, [S +] length, D) of source tokens and prompt."""
        length = prompt_tokens.shape[1]
        text = self.words(prompt_tokens) + self.word_position[:length]
        causal = torch.ones(length, length, dtype=torch.bool, device=text.device).tril()
        # A padded query keeps itself as a key, or its softmax would have none.
        own = torch.eye(length, dtype=torch.bool, device=text.device)
        text_see = (causal & text_mask[:, None, :]) | own
        modulation = None
        if images is not None:
            modulation = self._modulation(self.time(images.new_zeros(len(images))))
            text_see = functional.pad(text_see, (images.shape[1], 0), value=True)
        keys, values = [], []
        for image_block, text_block in zip(self.image_blocks, self.text_blocks, strict=True):
            assert isinstance(image_block, ImageExpertBlock)
            assert isinstance(text_block, TextExpertBlock)
            q, k, v = text_block.attn.project(text_block.norm1(text))
            if images is not None and modulation is not None:
                images, image_k, image_v = image_block(images, modulation, self.rotary)
                k, v = torch.cat([image_k, k], dim=2), torch.cat([image_v, v], dim=2)
            text = text + text_block.attn.attend(q, k, v, text_see[:, None])
            text = text + text_block.mlp(text_block.norm2(text))
            keys.append(k)
            values.append(v)
        return torch.stack(keys, dim=1), torch.stack(values, dim=1)

    def velocity(self, x: Tensor, t: Tensor, context: TextContext) -> Tensor:
        """Velocity (R, C, h, w) of noisy latents x (R, C, h, w) at times t (R,) in [0, 1]."""
        config = self.config
        tokens = self.embed(patchify(x, config.patch_size)) + self.position + context.source
        time = self.time(t)
        modulation = self._modulation(time)
        own = context.mask.new_ones(len(x), config.num_image_tokens)
        mask = torch.cat([context.mask, own], dim=1)[:, None, None]  # (R, 1, 1, N + S)
        for layer, block in enumerate(self.image_blocks):
            past = (context.keys[:, layer], context.values[:, layer])
            tokens, _, _ = block(tokens, modulation, self.rotary, past, mask)
        shift, scale = self.final_modulation(functional.silu(time)).chunk(2, dim=-1)
        tokens = self.to_velocity(modulate(self.norm(tokens), shift, scale))
        return unpatchify(tokens, config.patch_size, (config.grid, config.grid))

    def _modulation(self, time: Tensor) -> Tensor:
        """(R, 6, W) shifts, scales and gates that all blocks share."""
        out: Tensor = self.to_modulation(functional.silu(time)).unflatten(-1, (6, -1))
        return out
