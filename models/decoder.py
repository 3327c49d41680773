"""The pixel decoder: a ViT that paints one patch per token."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers import Block, rotary_table, unpatchify


@dataclass(frozen=True, kw_only=True)
class PixelDecoderConfig:
    """Tokens of `token_width` on a square grid to images of grid * patch_size pixels a side."""

    token_width: int = 192
    grid: int = 8
    patch_size: int = 16
    width: int = 192
    depth: int = 4
    num_heads: int = 6

    def __post_init__(self) -> None:
        if self.width % (4 * self.num_heads):
            raise ValueError(
                f"width {self.width} is not divisible by 4 * num_heads {4 * self.num_heads}"
            )


class PixelDecoder(nn.Module):
    """Tokens to images."""

    def __init__(self, config: PixelDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.token_width, config.width)
        self.position = nn.Parameter(torch.zeros(config.grid**2, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, config.num_heads) for _ in range(config.depth)
        )
        self.to_pixels = nn.Linear(config.width, 3 * config.patch_size**2)
        self.register_buffer(
            "rotary", rotary_table(config.grid, config.width // config.num_heads), persistent=False
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, token_width) -> images (B, 3, H, W), about [0, 1], not clamped."""
        x = self.embed(tokens) + self.position
        for block in self.blocks:
            x = block(x, self.rotary)
        return unpatchify(self.to_pixels(x), self.config.patch_size, 3) / 2 + 0.5
