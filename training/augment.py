"""Differentiable augmentation of what the discriminator sees, real and painted alike.

B batch. Source: DiffAugment (arXiv 2006.10738), with the strengths that RPiAE uses.
"""

import torch
from torch import Tensor
from torch.nn import functional

from training.losses import ALL_ROWS

TRANSLATION = 0.125
"""Largest shift, as a share of the side."""
BRIGHTNESS = 0.5
"""Largest change either way, on the scale [-1, 1]."""
SATURATION = (0.0, 2.0)
CONTRAST = (0.5, 1.5)


def translate(images: Tensor, rows: list[int], columns: list[int]) -> Tensor:
    """Images (B, 3, H, W) moved down by rows and right by columns of each; zeros come in."""
    height, width = images.shape[-2:]
    reach = max(abs(shift) for shift in (*rows, *columns))
    padded = functional.pad(images, (reach, reach, reach, reach))
    moved = [
        image[:, reach - down : reach - down + height, reach - right : reach - right + width]
        for image, down, right in zip(padded, rows, columns, strict=True)
    ]
    return torch.stack(moved)


def augment(
    images: Tensor,
    generator: torch.Generator,
    rows: slice = ALL_ROWS,
    num_rows: int | None = None,
) -> Tensor:
    """Shift, brightness, saturation and contrast of each image, drawn from the generator.

    Args:
        images: (B, 3, H, W) in [-1, 1]; gradients pass through.
        generator: on the CPU.
        rows: which of a batch of `num_rows` the images are; what is drawn for each depends on it.
    """
    height, width = images.shape[-2:]
    draws = torch.rand(5, num_rows or len(images), generator=generator)[:, rows]
    reach = torch.tensor([round(height * TRANSLATION), round(width * TRANSLATION)])[:, None]
    shifts = (draws[:2] * (2 * reach + 1)).floor().long() - reach  # every shift equally likely
    brightness, saturation, contrast = draws[2:].to(images).view(3, -1, 1, 1, 1)
    images = translate(images, shifts[0].tolist(), shifts[1].tolist())
    images = images + (2 * brightness - 1) * BRIGHTNESS
    images = _spread(images, images.mean(1, keepdim=True), saturation, SATURATION)
    return _spread(images, images.mean((1, 2, 3), keepdim=True), contrast, CONTRAST)


def _spread(images: Tensor, mean: Tensor, draw: Tensor, factors: tuple[float, float]) -> Tensor:
    low, high = factors
    return mean + (images - mean) * (low + (high - low) * draw)
