"""The pixel decoder: a ViT that paints one patch per token."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers import Block, BlockStyle
from models.positions import (
    Grid,
    resize_positions,
    rotary_table,
    sinusoidal_positions,
    unpatchify,
)


@dataclass(frozen=True, kw_only=True)
class PixelDecoderConfig:
    """Tokens of `token_width` on a square grid to images of grid * patch_size pixels a side.

    rotary: rotary positions beside the learned ones, which then start at zero instead of as
    sinusoids; class_token: a learned token that sees the patches and paints nothing; final_norm: a
    LayerNorm before the pixels; pixel_mean, pixel_std: what the network's output is scaled with.
    """

    token_width: int = 192
    grid: int = 8
    patch_size: int = 16
    width: int = 192
    depth: int = 4
    num_heads: int = 6
    style: BlockStyle = "rms-swiglu"
    hidden_width: int | None = None
    norm_eps: float = 1e-6
    rotary: bool = True
    class_token: bool = False
    final_norm: bool = False
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if self.width % (4 * self.num_heads):
            raise ValueError(
                f"width {self.width} is not divisible by 4 * num_heads {4 * self.num_heads}"
            )
        if self.class_token and self.rotary:
            raise ValueError("a class token has no place on the grid: class_token needs rotary off")
        # JSON has no tuples: configs that were read from a manifest come with lists.
        object.__setattr__(self, "pixel_mean", tuple(self.pixel_mean))
        object.__setattr__(self, "pixel_std", tuple(self.pixel_std))


class PixelDecoder(nn.Module):
    """Tokens to images."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: PixelDecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.token_width, config.width)
        square = (config.grid, config.grid)
        if config.rotary:
            positions = torch.zeros(config.grid**2, config.width)
            self.register_buffer("rotary", self._rotary(square), persistent=False)
        else:
            positions = sinusoidal_positions(square, config.width)
        if config.class_token:
            self.class_token = nn.Parameter(torch.zeros(config.width))
            positions = torch.cat([torch.zeros(1, config.width), positions])
        self.position = nn.Parameter(positions)
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.num_heads,
                style=config.style,
                hidden_width=config.hidden_width,
                norm_eps=config.norm_eps,
            )
            for _ in range(config.depth)
        )
        self.norm = (
            nn.LayerNorm(config.width, config.norm_eps) if config.final_norm else nn.Identity()
        )
        self.to_pixels = nn.Linear(config.width, 3 * config.patch_size**2)
        for name in ("pixel_mean", "pixel_std"):
            values = torch.tensor(getattr(config, name)).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        """(B, rows * columns, token_width) -> images (B, 3, H, W), about [0, 1], not clamped.

        Positions of another grid than the config's square one are interpolated.
        """
        trained = (self.config.grid, self.config.grid)
        grid = grid or trained
        num_patches = self.config.grid**2
        first, positions = self.position[:-num_patches], self.position[-num_patches:]
        x = self.embed(tokens) + resize_positions(positions, trained, grid)
        rotary = None
        if self.config.rotary:
            rotary = self.rotary if grid == trained else self._rotary(grid).to(x)
        if self.config.class_token:
            x = torch.cat([(self.class_token + first).expand(x.shape[0], 1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x, rotary)
        if self.config.class_token:
            x = x[:, 1:]
        images = unpatchify(self.to_pixels(self.norm(x)), self.config.patch_size, grid)
        return images * self.pixel_std + self.pixel_mean

    def _rotary(self, grid: Grid) -> Tensor:
        side = self.config.grid
        head_width = self.config.width // self.config.num_heads
        return rotary_table(grid, head_width, trained=(side, side))
