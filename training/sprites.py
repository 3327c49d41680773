"""Sprites: the coverage and colours of one shape or thing at one size and angle.

Shapes are drawn from their inside tests, supersampled; things come from the committed atlas
`training/data/things.png`, whose cells are listed in `things.json`. Coverage is an integer from 0
to `OPAQUE`, so that compositing stays in 16-bit integers: (colour - ground) * coverage fits.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.nouns import SHAPES

OPAQUE = 128

_DATA = Path(__file__).parent / "data"
_SUPERSAMPLING = 4
# A thing fills this share of its box, so that its corners stay inside when turned by 8 degrees.
_THING_FILL = 0.86

Plane = NDArray[np.float32]
Mask = NDArray[np.bool_]
InsideTest = Callable[[Plane, Plane], Mask]


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """One drawing in a square box of `side` pixels.

    coverage: (side, side, 3) int16 in [0, OPAQUE], the same value in all three channels;
    colors: (side, side, 3) int16 in [0, 255], or None for a shape, which takes its item's colour;
    mask: (side, side) bool, coverage above one half;
    box: x0, y0, x1, y1 of the mask within the sprite, x1 and y1 exclusive.
    """

    side: int
    coverage: NDArray[np.int16]
    colors: NDArray[np.int16] | None
    mask: Mask
    box: tuple[int, int, int, int]


def _star(x: Plane, y: Plane) -> Mask:
    # All ten edges fold onto one: from a tip at angle 0 to the notch at angle 36 degrees.
    tip, notch, sector = 0.98, 0.43, 2 * np.pi / 5
    y = y - 0.06  # the drawing of a five-pointed star is higher than it is deep
    angle = np.abs((np.arctan2(x, -y) + sector / 2) % sector - sector / 2)
    radius = np.hypot(x, y)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    notch_along, notch_across = notch * np.cos(sector / 2), notch * np.sin(sector / 2)
    inside: Mask = (tip - along) * notch_across >= (tip - notch_along) * across
    return inside


def _heart(x: Plane, y: Plane) -> Mask:
    u, v = x * 1.24, 0.12 - y * 1.22
    inside: Mask = (u * u + v * v - 1) ** 3 - u * u * v**3 <= 0
    return inside


# Inside tests in a box from -1 to 1, y pointing down. Squares stand, diamonds are slim: they stay
# apart when turned by 8 degrees.
_INSIDE: dict[str, InsideTest] = {
    "circle": lambda x, y: np.hypot(x, y) <= 0.94,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) <= 0.82,
    "triangle": lambda x, y: (y <= 0.72) & (np.abs(x) * 1.64 <= (y + 0.92) * 0.88),
    "star": _star,
    "heart": _heart,
    "diamond": lambda x, y: np.abs(x) / 0.66 + np.abs(y) / 0.97 <= 1,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.7) <= 0.24,
    "cross": lambda x, y: (
        (np.minimum(np.abs(x), np.abs(y)) <= 0.27) & (np.maximum(np.abs(x), np.abs(y)) <= 0.88)
    ),
}


def _shape_coverage(kind: str, side: int, angle: float) -> Plane:
    num = side * _SUPERSAMPLING
    axis = ((np.arange(num, dtype=np.float32) + 0.5) * 2 / num - 1).astype(np.float32)
    x, y = axis[None, :], axis[:, None]
    cos, sin = np.float32(np.cos(np.radians(angle))), np.float32(np.sin(np.radians(angle)))
    inside = _INSIDE[kind](x * cos + y * sin, y * cos - x * sin)
    blocks = inside.reshape(side, _SUPERSAMPLING, side, _SUPERSAMPLING)
    coverage: Plane = blocks.mean(axis=(1, 3), dtype=np.float32)
    return coverage


@cache
def _atlas() -> tuple[Image.Image, int, dict[str, tuple[int, int]]]:
    index = json.loads((_DATA / "things.json").read_text())
    cells = {cell["name"]: (cell["x"], cell["y"]) for cell in index["things"]}
    with Image.open(_DATA / "things.png") as image:
        return image.convert("RGBA"), index["cell"], cells


@cache
def thing_image(kind: str) -> Image.Image:
    """The atlas cell of a thing: square, RGBA, trimmed to the drawing.

    Raises ValueError for a name that the atlas does not hold.
    """
    image, cell, cells = _atlas()
    if kind not in cells:
        raise ValueError(f"no sprite for {kind!r}; the atlas holds {', '.join(cells)}")
    x, y = cells[kind]
    return image.crop((x, y, x + cell, y + cell))


def _thing_pixels(kind: str, side: int, angle: float) -> Plane:
    """(side, side, 4) in [0, 255], colours premultiplied by alpha."""
    inner = round(side * _THING_FILL)
    drawing = thing_image(kind).convert("RGBa").resize((inner, inner), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBa", (side, side))
    canvas.paste(drawing, ((side - inner) // 2, (side - inner) // 2))
    if angle:
        canvas = canvas.rotate(-angle, Image.Resampling.BICUBIC)
    return np.asarray(canvas, dtype=np.float32)


def mask_box(mask: Mask) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the true pixels of a (H, W) mask, x1 and y1 exclusive; zeros if none is."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return (0, 0, 0, 0)
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


@lru_cache(maxsize=4096)
def sprite(kind: str, side: int, angle: float) -> Sprite:
    """Draws a shape or thing into a box of `side` pixels, turned clockwise by `angle` degrees.

    Raises ValueError if `kind` is neither a shape nor in the atlas, or `side` is below 4.
    """
    if side < 4:
        raise ValueError(f"a sprite needs a side of at least 4 pixels, got {side}")
    colors = None
    if kind in SHAPES:
        share = _shape_coverage(kind, side, angle)
    else:
        pixels = _thing_pixels(kind, side, angle)
        share = pixels[..., 3] / np.float32(255)
        opaque_rgb = pixels[..., :3] / np.maximum(share, 1 / 255)[..., None]
        colors = np.clip(np.rint(opaque_rgb), 0, 255).astype(np.int16)
    coverage = np.rint(share * OPAQUE).astype(np.int16)
    mask = coverage > OPAQUE // 2
    return Sprite(
        side=side,
        coverage=np.repeat(coverage[..., None], 3, axis=2),
        colors=colors,
        mask=mask,
        box=mask_box(mask),
    )
