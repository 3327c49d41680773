"""Representation encoders: images to patch tokens that carry meaning."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers import Block
from models.positions import Grid, patchify, resize_positions, rotary_table


@dataclass(frozen=True, kw_only=True)
class SmallViTConfig:
    """A ViT small enough to be pretrained on a laptop."""

    kind: Literal["small-vit"] = "small-vit"
    image_size: int = 128
    patch_size: int = 16
    width: int = 192
    depth: int = 4
    num_heads: int = 6

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not divisible by patch_size {self.patch_size}"
            )
        if self.width % (4 * self.num_heads):
            raise ValueError(
                f"width {self.width} is not divisible by 4 * num_heads {4 * self.num_heads}"
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, kw_only=True)
class PretrainedEncoderConfig:
    """A published ViT; the defaults are those of facebook/dinov2-with-registers-base.

    image_size: side in pixels of what the encoder sees, which need not be the picture's own;
    position_grid: side of the stored grid of positions, interpolated to the one in use.
    """

    kind: Literal["dinov2-with-registers", "siglip2", "mae"] = "dinov2-with-registers"
    image_size: int = 224
    patch_size: int = 14
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    hidden_width: int = 3072
    position_grid: int = 37
    num_registers: int = 4
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size {self.image_size} is not divisible by patch_size {self.patch_size}"
            )
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not divisible by num_heads {self.num_heads}")
        # JSON has no tuples: configs that were read from a manifest come with lists.
        object.__setattr__(self, "pixel_mean", tuple(self.pixel_mean))
        object.__setattr__(self, "pixel_std", tuple(self.pixel_std))

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


EncoderConfig: TypeAlias = SmallViTConfig | PretrainedEncoderConfig


def encoder_config(**fields: Any) -> EncoderConfig:
    """The config that `fields` are of, told apart by `kind`; absent: a small ViT.

    Raises:
        ValueError, TypeError: an unknown kind, or fields that do not fit.
    """
    if fields.get("kind", "small-vit") == "small-vit":
        return SmallViTConfig(**fields)
    return PretrainedEncoderConfig(**fields)


def build_encoder(config: EncoderConfig) -> nn.Module:
    """Module that turns images (B, 3, H, W) in [0, 1] into tokens (B, N, width).

    Its second argument `grid` is the (rows, columns) of the tokens, by default the config's.
    """
    if isinstance(config, SmallViTConfig):
        return SmallViT(config)
    # transformers takes seconds to import; only models that need it pay for that.
    from models.pretrained_encoder import PretrainedEncoder

    return PretrainedEncoder(config)


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) stretched to (height, width), bicubic without antialiasing.

    Raises:
        ValueError: images is not (B, 3, H, W).
    Source: RPiAE's encoder, which brings pictures of every size and aspect ratio to its input.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
    if tuple(images.shape[-2:]) == size:
        return images
    return functional.interpolate(images, size=size, mode="bicubic", align_corners=False)


class SmallViT(nn.Module):
    """Images to tokens with zero mean and unit variance over channels (LayerNorm, no affine)."""

    num_prefix_tokens = 0
    """Tokens that stand before the patches inside the blocks."""

    def __init__(self, config: SmallViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(3 * config.patch_size**2, config.width)
        self.position = nn.Parameter(torch.zeros(config.grid**2, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads) for _ in range(config.depth)
        )
        self.register_buffer("rotary", self._rotary((config.grid, config.grid)), persistent=False)

    def forward(self, images: Tensor, grid: Grid | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> tokens (B, rows * columns, width).

        Images are resized to the grid's pixels (bicubic); positions of another grid than the
        trained one are interpolated.

        Raises:
            ValueError: images is not (B, 3, H, W).
        """
        trained = (self.config.grid, self.config.grid)
        rows, columns = grid = grid or trained
        patch = self.config.patch_size
        images = resize_images(images, (rows * patch, columns * patch))
        position = resize_positions(self.position, trained, grid)
        rotary = self.rotary if grid == trained else self._rotary(grid).to(images)
        x = self.embed(patchify(2 * images - 1, patch)) + position
        for block in self.blocks:
            x = block(x, rotary)
        return functional.layer_norm(x, (self.config.width,), eps=1e-6)

    def _rotary(self, grid: Grid) -> Tensor:
        side = self.config.grid
        head_width = self.config.width // self.config.num_heads
        return rotary_table(grid, head_width, trained=(side, side))
