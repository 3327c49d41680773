"""Recognises everyday things: a region of a picture against every thing of the atlas.

Region and drawings are cut to the box of what differs from the background and brought to one
small size, so that size and place do not matter. The drawings stand on the picture's own
background: parts of a thing may have its colour and vanish in it.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.layout import EXTENTS
from training.palette import COLORS, lab
from training.segments import Mask, Pixels, blur, components, differs
from training.sprites import OPAQUE, mask_box, sprite

MIN_THING_SCORE = 0.6
"""A region that no thing explains better than this shows none."""

_SIDES = (min(EXTENTS["small"]), max(EXTENTS["large"]))
_ANGLES = (-6.0, 0.0, 6.0)
_CUT_SIDE = 24
_MARGIN = 4
# Loss of score per unit of log aspect ratio between the region's box and the drawing's.
_ASPECT_WEIGHT = 0.3

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ThingMatch:
    """The best thing; center (x, y) and extent of its sprite's box in pixels; score at most 1."""

    kind: str
    center: tuple[float, float]
    extent: float
    score: float


@dataclass(frozen=True)
class _Drawings:
    """Things on one background. values (n, 3 * _CUT_SIDE^2): CIELAB minus the background's."""

    kinds: tuple[str, ...]
    sides: NDArray[np.int64]
    boxes: NDArray[np.float64]
    """(n, 4): x0, y0, x1, y1 from the middle of the sprite's box."""
    values: NDArray[np.float32]
    squares: NDArray[np.float32]


def _cut(image: Pixels, box: Box, ground: Pixels) -> NDArray[np.float32]:
    """The box at _CUT_SIDE x _CUT_SIDE pixels, CIELAB minus the background's, flat."""
    pixels = Image.fromarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))
    small = pixels.resize((_CUT_SIDE, _CUT_SIDE), Image.Resampling.BOX, box=box)
    return (lab(np.asarray(small)) - lab(ground)).astype(np.float32).ravel()


def _draw(kind: str, side: int, angle: float, ground: Pixels) -> Pixels:
    """The thing on a plain background, with a margin, smoothed as the judge smooths pictures."""
    drawing = sprite(kind, side, angle)
    assert drawing.colors is not None
    share = drawing.coverage.astype(np.float32) / OPAQUE
    length = side + 2 * _MARGIN
    canvas = np.broadcast_to(ground, (length, length, 3)).astype(np.float32)
    inner = np.s_[_MARGIN : _MARGIN + side, _MARGIN : _MARGIN + side]
    canvas[inner] += share * (drawing.colors - canvas[inner])
    return blur(canvas)


@lru_cache(maxsize=32)
def _drawings(kinds: tuple[str, ...], ground_name: str) -> _Drawings:
    ground = np.array(COLORS[ground_name], dtype=np.float32)
    found: list[tuple[str, int, NDArray[np.float64], NDArray[np.float32]]] = []
    for kind in kinds:
        for side in _SIDES:
            for angle in _ANGLES:
                image = _draw(kind, side, angle, ground)
                pieces = components(differs(lab(image).astype(np.float32), lab(ground)))
                if not pieces:  # all of it has the background's colour
                    continue
                box = mask_box(np.any(pieces, axis=0))
                middle = _MARGIN + side / 2
                found.append((kind, side, np.array(box) - middle, _cut(image, box, ground)))
    values = np.stack([row[3] for row in found])
    return _Drawings(
        kinds=tuple(row[0] for row in found),
        sides=np.array([row[1] for row in found]),
        boxes=np.stack([row[2] for row in found]),
        values=values,
        squares=(values**2).sum(axis=1),
    )


def match_thing(
    kinds: tuple[str, ...], image: Pixels, region: Mask, ground_name: str, ground: Pixels
) -> ThingMatch:
    """The thing that explains the region best.

    The score is the share of the contrast with the background that the drawing explains, less a
    little for another aspect ratio: 1 - |region - drawing|^2 / max(|region|^2, |drawing|^2).

    Args:
        image: (H, W, 3) smoothed sRGB values in [0, 255].
        ground: (3,) the background's own colour; `ground_name` is that of the palette.
    """
    drawings = _drawings(kinds, ground_name)
    box = mask_box(region)
    cut = _cut(image, box, ground)
    square = float(cut @ cut)
    error = drawings.squares + square - 2 * drawings.values @ cut
    width, height = box[2] - box[0], box[3] - box[1]
    widths = drawings.boxes[:, 2] - drawings.boxes[:, 0]
    heights = drawings.boxes[:, 3] - drawings.boxes[:, 1]
    stretch = np.abs(np.log(width / height) - np.log(widths / heights))
    scores = 1 - error / np.maximum(drawings.squares, square) - _ASPECT_WEIGHT * stretch
    best = int(scores.argmax())
    scale = float(width / widths[best] + height / heights[best]) / 2
    offset = (drawings.boxes[best, :2] + drawings.boxes[best, 2:]) / 2 * scale
    return ThingMatch(
        kind=drawings.kinds[best],
        center=((box[0] + box[2]) / 2 - float(offset[0]), (box[1] + box[3]) / 2 - float(offset[1])),
        extent=scale * float(drawings.sides[best]),
        score=float(scores[best]),
    )
