"""Tokens on a grid: patches, learned positions, sinusoids and rotary tables, at any grid.

B batch, N tokens = rows * columns, C token width, D head width. A grid is (rows, columns). On a
grid that a model was not trained on, its positions are interpolated: the picture's corners stay
where they were.
"""

import torch
from torch import Tensor
from torch.nn import functional

Grid = tuple[int, int]


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, C, h, w) -> (B, h/p * w/p, p * p * C), rows first, channels fastest."""
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(tokens: Tensor, patch: int, grid: Grid) -> Tensor:
    """Inverse of `patchify`: (B, rows * columns, p * p * C) -> (B, C, rows * p, columns * p)."""
    rows, columns = grid
    batch = tokens.shape[0]  # len() would fix the batch of an exported graph
    x = tokens.reshape(batch, rows, columns, patch, patch, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, rows * patch, columns * patch)


def rotary_table(
    grid: Grid, head_width: int, *, trained: Grid | None = None, theta: float = 10000.0
) -> Tensor:
    """(2, N, D) cosines and sines of axial rotary positions.

    The first half of a head turns with the row, the second with the column; frequency k is
    theta ** (-2k / (D / 2)), each used by an adjacent pair of channels. `trained` is the grid
    whose positions are interpolated; absent: `grid` itself.
    Source: LightningDiT (arXiv 2501.01423), vision_rotary_embedding.
    """
    if head_width % 4:
        raise ValueError(f"head_width {head_width} is not divisible by 4")
    half = head_width // 2
    frequencies = theta ** (-torch.arange(0, half, 2).float() / half)
    row_angles, column_angles = (
        (
            _coordinates(side, side if trained is None else trained[axis])[:, None] * frequencies
        ).repeat_interleave(2, dim=-1)  # (side, half)
        for axis, side in enumerate(grid)
    )
    by_row = row_angles[:, None].expand(*grid, half)
    by_column = column_angles[None, :].expand(*grid, half)
    angles = torch.cat([by_row, by_column], dim=-1).reshape(-1, head_width)
    return torch.stack([angles.cos(), angles.sin()])


def _coordinates(side: int, trained_side: int) -> Tensor:
    """Centres of `side` cells, in units of the trained cells, of which the first is at 0."""
    return (torch.arange(side) + 0.5) * (trained_side / side) - 0.5


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Apply rotary positions: x (..., N, D), table (2, N, D). The result has the type of x."""
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return (x * table[0] + turned * table[1]).to(x.dtype)


def sinusoidal_positions(grid: Grid, width: int) -> Tensor:
    """(N, C) fixed 2-D sinusoids: the first half of the channels encodes the column, the second
    the row, each as sines then cosines of frequencies 10000 ** (-k / (C / 4)).

    Source: MAE (arXiv 2111.06377), whose first half is the column as well.
    """
    if width % 4:
        raise ValueError(f"width {width} is not divisible by 4")
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    parts = []
    for angles in (
        (columns[:, None] * frequencies).expand(*grid, -1),
        (rows[:, None] * frequencies)[:, None].expand(*grid, -1),
    ):
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=-1).flatten(0, 1).float()


def resize_positions(positions: Tensor, trained: Grid, grid: Grid) -> Tensor:
    """Learned positions (N, C) of the grid `trained`, interpolated to another one (bicubic)."""
    if grid == trained:
        return positions
    maps = positions.T.reshape(1, -1, *trained)
    resized = functional.interpolate(maps.float(), size=grid, mode="bicubic", antialias=True)
    return resized.flatten(2)[0].T.to(positions.dtype)
