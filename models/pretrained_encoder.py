"""Published encoders through transformers, built from a config: nothing is downloaded here.

B batch, N patch tokens, C token width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTMAEConfig,
    ViTMAEModel,
)

from models.encoder import PretrainedEncoderConfig, resize_images
from models.positions import Grid

_EPS = 1e-6


def _sizes(config: PretrainedEncoderConfig) -> dict[str, Any]:
    """What the configs of all families call by the same names."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "image_size": config.position_grid * config.patch_size,
        "patch_size": config.patch_size,
    }


def _dinov2(config: PretrainedEncoderConfig) -> nn.Module:
    ratio, rest = divmod(config.hidden_width, config.width)
    if rest:
        raise ValueError(
            f"hidden_width {config.hidden_width} is not a multiple of width {config.width}"
        )
    family = Dinov2WithRegistersConfig(
        **_sizes(config), mlp_ratio=ratio, num_register_tokens=config.num_registers
    )
    model = Dinov2WithRegistersModel(family)
    model.layernorm = _norm_without_affine(config)
    return model


def _siglip2(config: PretrainedEncoderConfig) -> nn.Module:
    family = SiglipVisionConfig(
        **_sizes(config), intermediate_size=config.hidden_width, vision_use_head=False
    )
    model = SiglipVisionModel(family)
    model.post_layernorm = _norm_without_affine(config)
    return model


def _mae(config: PretrainedEncoderConfig) -> nn.Module:
    family = ViTMAEConfig(**_sizes(config), intermediate_size=config.hidden_width, mask_ratio=0.0)
    model = ViTMAEModel(family)
    model.layernorm = _norm_without_affine(config)
    return model


def _norm_without_affine(config: PretrainedEncoderConfig) -> nn.LayerNorm:
    """Tokens of mean 0 and variance 1: what bridge and pivot are trained on."""
    return nn.LayerNorm(config.width, eps=_EPS, elementwise_affine=False)


def _run_dinov2(model: Any, images: Tensor) -> Tensor:
    hidden: Tensor = model(images).last_hidden_state
    return hidden


def _run_siglip2(model: Any, images: Tensor) -> Tensor:
    hidden: Tensor = model(images, interpolate_pos_encoding=True).last_hidden_state
    return hidden


def _run_mae(model: Any, images: Tensor) -> Tensor:
    # MAE shuffles its patches by sorting noise; ascending noise leaves them in their order.
    size = model.config.patch_size
    num_patches = (images.shape[-2] // size) * (images.shape[-1] // size)
    noise = torch.arange(num_patches, device=images.device).expand(images.shape[0], -1)
    output = model(images, noise=noise, interpolate_pos_encoding=True)
    hidden: Tensor = output.last_hidden_state
    return hidden


@dataclass(frozen=True)
class _Family:
    """How a family of encoders is built and run, and how many tokens stand before the patches."""

    build: Callable[[PretrainedEncoderConfig], nn.Module]
    run: Callable[[Any, Tensor], Tensor]
    num_prefix_tokens: Callable[[PretrainedEncoderConfig], int]


_FAMILIES = {
    # One class token and the registers.
    "dinov2-with-registers": _Family(_dinov2, _run_dinov2, lambda config: 1 + config.num_registers),
    "siglip2": _Family(_siglip2, _run_siglip2, lambda _: 0),
    "mae": _Family(_mae, _run_mae, lambda _: 1),
}


class PretrainedEncoder(nn.Module):
    """Images to patch tokens of mean 0 and variance 1 (LayerNorm without affine)."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: PretrainedEncoderConfig) -> None:
        super().__init__()
        if config.kind not in _FAMILIES:
            raise ValueError(f"unknown encoder {config.kind!r}: one of {', '.join(_FAMILIES)}")
        self.config = config
        self._family = _FAMILIES[config.kind]
        self.num_prefix_tokens = self._family.num_prefix_tokens(config)
        self.model = self._family.build(config)
        for name in ("pixel_mean", "pixel_std"):
            values = torch.tensor(getattr(config, name)).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor, grid: Grid | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> tokens (B, rows * columns, C).

        Images are stretched to the grid's pixels (bicubic, no antialias), then normalised;
        positions are interpolated as transformers does for this family.

        Raises:
            ValueError: images is not (B, 3, H, W).
        Source: RPiAE (arXiv 2603.19206), Dinov2withNorm; RAE (arXiv 2510.11690) for the others.
        """
        rows, columns = grid or (self.config.grid, self.config.grid)
        patch = self.config.patch_size
        images = resize_images(images, (rows * patch, columns * patch))
        hidden = self._family.run(self.model, (images - self.pixel_mean) / self.pixel_std)
        return hidden[:, self.num_prefix_tokens :]
