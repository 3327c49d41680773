"""From a scene to its picture, the mask and box of each item, and labels per patch."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from training.backgrounds import NUM_TEXTURES, paint_background
from training.nouns import SHAPES, THINGS
from training.palette import COLORS
from training.scenes import Item, Scene
from training.sprites import OPAQUE, Sprite, mask_box, sprite

PATCH_KINDS = ("background", *SHAPES, *THINGS)

# A patch shows an item once the item covers this share of it.
MIN_PATCH_SHARE = 0.15

_KIND_INDEX = {kind: i for i, kind in enumerate(PATCH_KINDS)}
_COLOR_INDEX = {color: i for i, color in enumerate(COLORS)}


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """image: (S, S, 3) uint8 sRGB; masks: (n, S, S) bool, the visible pixels of each item;
    boxes: (n, 4) int64, x0, y0, x1, y1 of each mask, x1 and y1 exclusive, zeros if it is empty.
    """

    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    boxes: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PatchLabels:
    """What each of the N patches shows, row by row.

    kind: (N,) int64 index into `PATCH_KINDS`, of the item that covers most of the patch;
    background (0) where no item covers MIN_PATCH_SHARE of it.
    color: (N,) int64, 1 + index into COLORS; 0 for background and things.
    background: index into COLORS of the background's main colour.
    coverage: (N,) float32 in [0, 1], the share of the patch that items cover.
    """

    kind: NDArray[np.int64]
    color: NDArray[np.int64]
    background: int
    coverage: NDArray[np.float32]


@lru_cache(maxsize=64)
def _flat(color: str, image_size: int) -> NDArray[np.int16]:
    return np.full((image_size, image_size, 3), COLORS[color], dtype=np.int16)


def _draw(image: NDArray[np.uint8], item: Item, mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Draws the item and fills its mask; the box of the mask."""
    size = image.shape[0]
    drawing: Sprite = sprite(item.kind, round(item.extent), item.angle)
    left = round(item.center[0] - drawing.side / 2)
    top = round(item.center[1] - drawing.side / 2)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + drawing.side, size), min(top + drawing.side, size)
    if x0 >= x1 or y0 >= y1:
        return (0, 0, 0, 0)
    part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    if drawing.colors is None:
        if item.color is None:
            raise ValueError(f"item {item.kind!r} is a shape and needs a color")
        colors = _flat(item.color, size)[: y1 - y0, : x1 - x0]
    else:
        colors = drawing.colors[part]
    ground = image[y0:y1, x0:x1]
    blend = colors - ground  # int16, so that the product with the coverage just fits
    blend *= drawing.coverage[part]
    blend += OPAQUE // 2
    blend >>= OPAQUE.bit_length() - 1
    blend += ground
    image[y0:y1, x0:x1] = blend
    mask[y0:y1, x0:x1] = drawing.mask[part]
    bx0, by0, bx1, by1 = drawing.box
    return (max(left + bx0, 0), max(top + by0, 0), min(left + bx1, size), min(top + by1, size))


def render(scene: Scene) -> Rendering:
    """Draws the background, then the items in order. The same scene gives the same pixels.

    Raises ValueError for a kind without a sprite and for a shape without a colour.
    """
    size, background = scene.image_size, scene.background
    texture = scene.seed % NUM_TEXTURES if background.scene is not None else 0
    image = paint_background(
        background.style, background.colors, background.scene, texture, size
    ).copy()
    masks = np.zeros((len(scene.items), size, size), dtype=np.bool_)
    boxes = np.zeros((len(scene.items), 4), dtype=np.int64)
    for i, item in enumerate(scene.items):
        boxes[i] = _draw(image, item, masks[i])
        for j in range(i):
            if _boxes_meet(boxes[i], boxes[j]):
                masks[j] &= ~masks[i]
                boxes[j] = mask_box(masks[j])
    return Rendering(image=image, masks=masks, boxes=boxes)


def _boxes_meet(a: NDArray[np.int64], b: NDArray[np.int64]) -> bool:
    return bool(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3])


def patch_labels(scene: Scene, rendering: Rendering, patch: int = 16) -> PatchLabels:
    """Labels of the (S / patch)^2 patches. Raises ValueError if `patch` does not divide S."""
    size = scene.image_size
    if patch < 1 or size % patch:
        raise ValueError(f"patch {patch} does not divide the image size {size}")
    grid = size // patch
    background = _COLOR_INDEX[scene.background.colors[0]]
    kind = np.zeros(grid * grid, dtype=np.int64)
    color = np.zeros(grid * grid, dtype=np.int64)
    if not scene.items:
        coverage = np.zeros(grid * grid, dtype=np.float32)
        return PatchLabels(kind=kind, color=color, background=background, coverage=coverage)
    cells = rendering.masks.reshape(-1, grid, patch, grid, patch)
    shares = cells.sum(axis=4, dtype=np.uint16).sum(axis=2).reshape(-1, grid * grid)
    shares = shares.astype(np.float32) / patch**2
    best = shares.argmax(axis=0)
    shown = shares.max(axis=0) >= MIN_PATCH_SHARE
    kinds = np.array([_KIND_INDEX[item.kind] for item in scene.items])
    colors = np.array([0 if i.color is None else 1 + _COLOR_INDEX[i.color] for i in scene.items])
    kind[shown], color[shown] = kinds[best[shown]], colors[best[shown]]
    coverage = shares.sum(axis=0, dtype=np.float32)
    return PatchLabels(kind=kind, color=color, background=background, coverage=coverage)
