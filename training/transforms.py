"""How pictures of any size become squares: the paper's rules for tokenizers and for diffusion.

Pictures of one sample (source and target of an edit) get the same crop and the same flip.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from training.image_files import SkippedError

CropRule = Literal["random", "center"]

RESIZE_RATIO = 1.5
"""Short side over crop, as published: 384 to 256."""
MAX_ASPECT_DIFFERENCE = 0.02
"""Aspect ratios of an edit's two pictures may differ by this share: sizes are rounded."""

_SIDES = re.compile(r"\b(left|right|clockwise|counterclockwise|mirror\w*)\b", re.IGNORECASE)


def fit_short_side(picture: Image.Image, side: int) -> Image.Image:
    """Bicubic with antialiasing, so that the short side is `side`; the long one rounds down."""
    width, height = picture.size
    short = min(width, height)
    size = (side * width // short, side * height // short)
    return picture if size == picture.size else picture.resize(size, Image.Resampling.BICUBIC)


def center_crop(picture: Image.Image, side: int) -> Image.Image:
    """The middle square, `side` pixels wide: halved by box filter while it can be, then bicubic.

    Source: the preprocessing of ADM (arXiv 2105.05233), which DiT and RPiAE share.
    """
    while min(picture.size) >= 2 * side:
        half = (picture.width // 2, picture.height // 2)
        picture = picture.resize(half, Image.Resampling.BOX)
    scale = side / min(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return picture.crop((left, top, left + side, top + side))


def names_a_side(text: str) -> bool:
    """Whether a text says left or right or a turn, which a flipped picture would contradict."""
    return _SIDES.search(text) is not None


def same_size(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """All in the size of the first.

    Raises:
        SkippedError: their aspect ratios differ, so no crop shows the same part of both.
    """
    first = pictures[0]
    same = [first]
    for other in pictures[1:]:
        ratio = (other.width * first.height) / (other.height * first.width)
        if abs(ratio - 1) > MAX_ASPECT_DIFFERENCE:
            raise SkippedError("shapes of the pair differ")
        fits = other.size == first.size
        same.append(other if fits else other.resize(first.size, Image.Resampling.BICUBIC))
    return same


@dataclass(frozen=True, kw_only=True)
class Framing:
    """What part of a picture a model sees.

    random: the short side becomes 1.5 image_size (384 for 256), then a random crop; no flip. For
    tokenizers. center: ADM's crop, flipped half of the time unless the text names a side. For
    diffusion. Source: RPiAE (arXiv 2603.19206); it does not say what becomes of texts with sides.
    """

    rule: CropRule
    image_size: int

    def apply(
        self, pictures: Sequence[Image.Image], text: str, rng: np.random.Generator
    ) -> list[Image.Image]:
        """Squares of image_size pixels.

        Raises:
            SkippedError: the pictures differ in shape.
        """
        pictures, side = same_size(pictures), self.image_size
        if self.rule == "center":
            squares = [center_crop(picture, side) for picture in pictures]
            flipped = rng.random() < 0.5 and not names_a_side(text)
            if not flipped:
                return squares
            return [square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for square in squares]
        fitted = [fit_short_side(picture, round(RESIZE_RATIO * side)) for picture in pictures]
        left = int(rng.integers(fitted[0].width - side + 1))
        top = int(rng.integers(fitted[0].height - side + 1))
        return [picture.crop((left, top, left + side, top + side)) for picture in fitted]


def stack(squares: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size -> (B, 3, H, W) uint8."""
    arrays = np.stack([np.asarray(square) for square in squares])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float in [0, 1]."""
    return images.float() / 255
