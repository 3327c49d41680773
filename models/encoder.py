"""Representation encoders: images to patch tokens that carry meaning."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.layers import Block, patchify, rotary_table


@dataclass(frozen=True, kw_only=True)
class SmallViTConfig:
    """A ViT small enough to be pretrained on a laptop."""

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


class SmallViT(nn.Module):
    """Images to tokens with zero mean and unit variance over channels (LayerNorm, no affine)."""

    def __init__(self, config: SmallViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(3 * config.patch_size**2, config.width)
        self.position = nn.Parameter(torch.zeros(config.grid**2, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads) for _ in range(config.depth)
        )
        self.register_buffer(
            "rotary", rotary_table(config.grid, config.width // config.num_heads), persistent=False
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> tokens (B, N, width); other sizes are resized (bicubic).

        Raises:
            ValueError: images is not (B, 3, H, W).
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        size = self.config.image_size
        if images.shape[-2:] != (size, size):
            images = functional.interpolate(
                images, size=(size, size), mode="bicubic", align_corners=False
            )
        x = self.embed(patchify(2 * images - 1, self.config.patch_size)) + self.position
        for block in self.blocks:
            x = block(x, self.rotary)
        return functional.layer_norm(x, (self.config.width,), eps=1e-6)
