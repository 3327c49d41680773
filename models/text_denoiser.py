"""TextDenoiser: text-to-image and instruction edits in one two-expert transformer.

The sequence is [clean source latents | prompt | noisy target latents]. Source and target go
through the image expert, the prompt through the text expert; attention is shared. Source and
prompt never see the target, so `prefill` computes their keys and values once per request.
Source: BAGEL-style mixture of transformers, as RPiAE's text-to-image setup (arXiv 2603.19206).

R rows, C latent channels, S source tokens = target tokens, T prompt tokens, N = S + T, W width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.image_expert import ImageExpertBlock
from models.layers import RMSNorm, TimestepEmbedding, modulate
from models.positions import patchify, rotary_table, unpatchify
from models.text import NO_TOKEN, PAD_ID
from models.text_context import TextContext, trim_padding
from models.text_expert import PromptEncoder, Qwen2Block, TextExpertBlock, sequence_table


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
    hidden_width: int | None = None
    """Of the image expert's feed-forward; absent: that of a plain one of ratio 4's cost."""
    text_expert: Literal["small", "qwen2"] = "small"
    """small: trained here. qwen2: the layers of a Qwen2 or Qwen2.5 model, as many and with as many
    and as wide heads as the image expert has."""
    text_width: int = 128
    prompt_depth: int = 0
    """small: layers in which every word sees every other, before those of the text expert."""
    text_hidden_width: int = 0
    """qwen2: of the text expert's feed-forward; `text_key_heads`, `text_theta` and `text_eps`: its
    num_key_value_heads, rope_theta and rms_norm_eps."""
    text_key_heads: int = 0
    text_theta: float = 1e6
    text_eps: float = 1e-6
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
        if self.prompt_depth < 0 or (self.prompt_depth and self.text_expert != "small"):
            raise ValueError(
                "prompt_depth must be >= 0, and 0 unless text_expert is small, got "
                f"{self.prompt_depth} and {self.text_expert}"
            )
        if self.prompt_depth and self.text_width % (2 * self.num_heads):
            raise ValueError(
                f"text_width {self.text_width} is not divisible by 2 * num_heads "
                f"{2 * self.num_heads}, which prompt_depth needs"
            )
        if self.text_expert == "qwen2" and (
            self.text_hidden_width < 1
            or self.text_key_heads < 1
            or self.num_heads % self.text_key_heads
        ):
            raise ValueError(
                "text_expert qwen2 needs text_hidden_width, and text_key_heads that divides "
                f"num_heads {self.num_heads}, got {self.text_hidden_width} and "
                f"{self.text_key_heads}"
            )

    @property
    def pad_id(self) -> int:
        """Prompt id that stands for no token; a pretrained vocabulary has no room for one."""
        return PAD_ID if self.text_expert == "small" else NO_TOKEN

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


def _text_block(config: TextDenoiserConfig) -> TextExpertBlock | Qwen2Block:
    """A layer of the text expert, by kind."""
    sizes = (config.text_width, config.num_heads, config.width)
    if config.text_expert == "small":
        return TextExpertBlock(*sizes)
    return Qwen2Block(
        *sizes,
        key_heads=config.text_key_heads,
        hidden_width=config.text_hidden_width,
        eps=config.text_eps,
    )


class TextDenoiser(nn.Module):
    """Velocity of noisy latents, given a prompt and, for edits, the source's latents."""

    rotary: Tensor
    text_table: Tensor | None

    def __init__(self, config: TextDenoiserConfig) -> None:
        super().__init__()
        self.config = config
        width, token_width = config.width, config.latent_channels * config.patch_size**2
        self.embed = nn.Linear(token_width, width)
        self.embed_source = nn.Linear(token_width, width)
        self.position = nn.Parameter(0.02 * torch.randn(config.num_image_tokens, width))
        self.words = nn.Embedding(config.vocabulary_size, config.text_width)
        small = config.text_expert == "small"
        self.word_position = None
        if small:
            self.word_position = nn.Parameter(
                0.02 * torch.randn(config.max_prompt_tokens, config.text_width)
            )
        self.prompt_encoder = PromptEncoder(
            config.text_width, config.num_heads, config.prompt_depth, config.max_prompt_tokens
        )
        self.image_blocks = nn.ModuleList(
            ImageExpertBlock(width, config.num_heads, config.hidden_width)
            for _ in range(config.depth)
        )
        self.text_blocks = nn.ModuleList(_text_block(config) for _ in range(config.depth))
        self.time = TimestepEmbedding(width)
        self.to_modulation = nn.Linear(width, 6 * width)
        self.norm = RMSNorm(width)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.to_velocity = nn.Linear(width, token_width)
        square = (config.grid, config.grid)
        self.register_buffer(
            "rotary", rotary_table(square, width // config.num_heads), persistent=False
        )
        head_width, length = width // config.num_heads, config.max_prompt_tokens
        text_table = None if small else sequence_table(length, head_width, config.text_theta)
        self.register_buffer("text_table", text_table, persistent=False)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.prompt_encoder.start_as_identity()
        nn.init.normal_(self.words.weight, std=0.5)
        # adaLN-zero: every block starts as identity and the predicted velocity at zero.
        for layer in (self.to_modulation, self.final_modulation, self.to_velocity):
            nn.init.zeros_(layer.weight)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.position.device

    def freeze_text(self) -> None:
        """Stop training the text expert, but not how the image expert sees its keys."""
        for part in (self.words, self.prompt_encoder, self.text_blocks):
            part.requires_grad_(False)
        if self.word_position is not None:
            self.word_position.requires_grad_(False)
        for block in self.text_blocks:
            if isinstance(block, Qwen2Block):
                block.key_norm.requires_grad_(True)

    def prefill(self, prompt_tokens: Tensor, source_latents: Tensor | None = None) -> TextContext:
        """Keys and values of prompt and source, computed once per request.

        Args:
            prompt_tokens: (R, T) int64 ids from the bundle's tokenizer, padded with pad_id.
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
        if source_latents is not None and (
            tuple(source_latents.shape) != (num_rows, *config.latent_shape)
        ):
            raise ValueError(
                f"source_latents must be {(num_rows, *config.latent_shape)}, "
                f"got {tuple(source_latents.shape)}"
            )
        # Columns that are padding in every row cost nothing; the context is padded again below.
        # The meta device has no values, so there every column counts.
        if not prompt_tokens.is_meta:
            prompt_tokens = trim_padding(prompt_tokens, config.pad_id)
        keys, values, source = self.see(prompt_tokens, source_latents)
        return TextContext.padded(
            keys,
            values,
            prompt_tokens != config.pad_id,
            source,
            source_shape=(config.num_image_tokens, config.width),
            max_prompt_tokens=config.max_prompt_tokens,
        )

    def see(
        self, prompt_tokens: Tensor, source_latents: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (R, depth, H, [S +] T, D), and the source's embedding (R, S, W) or None.

        What `prefill` computes, without the padding: of fixed shapes, so that it can be exported.
        """
        source = images = None
        if source_latents is not None:
            source = self.embed_source(patchify(source_latents, self.config.patch_size))
            images = source + self.position
        text_mask = prompt_tokens != self.config.pad_id
        return *self._layers(prompt_tokens, text_mask, images), source

    def _layers(
        self, prompt_tokens: Tensor, text_mask: Tensor, images: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (R, depth, H, [S +] length, D) of source tokens and prompt."""
        length = prompt_tokens.shape[1]
        # Neither a clamp of integers nor a pad of booleans, here and below: TensorRT has none.
        text = self.words(torch.where(text_mask, prompt_tokens, 0))
        table = self.text_table
        if self.word_position is not None:
            text = text + self.word_position[:length]
        if table is not None:
            table = table[:, :length]
        causal = torch.ones(length, length, dtype=torch.bool, device=text.device).tril()
        # A padded query keeps itself as a key, or its softmax would have none.
        own = torch.eye(length, dtype=torch.bool, device=text.device)
        text = self.prompt_encoder(text, (text_mask[:, None, :] | own)[:, None])
        text_see = (causal & text_mask[:, None, :]) | own
        modulation = None
        if images is not None:
            modulation = self._modulation(self.time(images.new_zeros(images.shape[0])))
            source_see = text_see.new_ones(*text_see.shape[:2], images.shape[1])
            text_see = torch.cat([source_see, text_see], dim=-1)
        keys, values = [], []
        for image_block, text_block in zip(self.image_blocks, self.text_blocks, strict=True):
            assert isinstance(image_block, ImageExpertBlock)
            assert isinstance(text_block, TextExpertBlock | Qwen2Block)
            q, k, v = text_block.project(text, table)
            if images is not None and modulation is not None:
                images, image_k, image_v = image_block(images, modulation, self.rotary)
                k, v = torch.cat([image_k, k], dim=2), torch.cat([image_v, v], dim=2)
            text = text_block.finish(text, q, k, v, text_see[:, None])
            keys.append(text_block.shown_keys(k, k.shape[2] - length))
            values.append(v)
        return torch.stack(keys, dim=1), torch.stack(values, dim=1)

    def velocity(self, x: Tensor, t: Tensor, context: TextContext) -> Tensor:
        """Velocity (R, C, h, w) of noisy latents x (R, C, h, w) at times t (R,) in [0, 1]."""
        config = self.config
        tokens = self.embed(patchify(x, config.patch_size)) + self.position + context.source
        time = self.time(t)
        modulation = self._modulation(time)
        own = context.mask.new_ones(x.shape[0], config.num_image_tokens)
        # Not (R, 1, 1, N + S): onnxruntime's Attention takes one row for each query.
        mask = torch.cat([context.mask, own], dim=1)[:, None, None]
        mask = mask.expand(-1, -1, config.num_image_tokens, -1)  # (R, 1, S, N + S)
        # Unbound once: the gradient of an index per layer would fill the whole stack per layer.
        pasts = zip(context.keys.unbind(1), context.values.unbind(1), strict=True)
        for block, past in zip(self.image_blocks, pasts, strict=True):
            tokens, _, _ = block(tokens, modulation, self.rotary, past, mask)
        shift, scale = self.final_modulation(functional.silu(time)).chunk(2, dim=-1)
        tokens = self.to_velocity(modulate(self.norm(tokens), shift, scale))
        return unpatchify(tokens, config.patch_size, (config.grid, config.grid))

    def _modulation(self, time: Tensor) -> Tensor:
        """(R, 6, W) shifts, scales and gates that all blocks share."""
        out: Tensor = self.to_modulation(functional.silu(time)).unflatten(-1, (6, -1))
        return out
