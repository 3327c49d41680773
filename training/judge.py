"""Reads from pixels alone what a picture of stickers shows. Nothing here is learned.

A picture is a plain background and pieces that differ from it; each piece is compared with the
drawings of every kind at many sizes and turns. Needs no torch, so it runs beside any sampler.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from training.layout import EXTENTS
from training.palette import lab
from training.segments import (
    UNKNOWN,
    Ground,
    Mask,
    Pixels,
    Plane,
    blur,
    color_name,
    components,
    dilate,
    erode,
    find_ground,
    main_color,
    nearest_colors,
    split_at_necks,
    split_by_color,
)
from training.sprites import OPAQUE, mask_box, sprite

MIN_SCORE = 0.86
"""Below this overlap with its best drawing an item is `unknown`."""

_BASE_SIDE = 128
_ANGLES = (-8.0, -4.0, 0.0, 4.0, 8.0)
# Sides beyond those that are drawn, so that a picture slightly off in size keeps its kind.
_SIDES = range(min(EXTENTS["small"]) - 4, max(EXTENTS["large"]) + 8, 2)
_CANVAS = 80
_SHIFTS = (-1, 0, 1)
_AREA_RATIO = 1.3
# Largest distance, in sRGB values, of a pixel's mixture from the line between two colours.
_OFF_LINE = 45.0


@dataclass(frozen=True, kw_only=True)
class FoundItem:
    """kind and color: names, or "unknown"; center (x, y) and box (x0, y0, x1, y1) in pixels;
    extent: side of the best drawing's box; score: its overlap with the picture, 0 to 1.
    """

    kind: str
    color: str
    center: tuple[float, float]
    box: tuple[int, int, int, int]
    extent: float
    score: float


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a picture shows: the colour of its background, and its items, largest first."""

    background: str
    items: tuple[FoundItem, ...]


@dataclass(frozen=True)
class _Canvas:
    """A picture, smoothed: sRGB and CIELAB values (H, W, 3), nearest palette colours (H, W)."""

    image: Pixels
    labs: Pixels
    nearest: NDArray[np.intp]
    ground: Ground


@dataclass(frozen=True)
class _Bank:
    """Drawings as rows, sorted by area: values (n, _CANVAS^2), centred on their centroids."""

    kinds: tuple[str, ...]
    sides: NDArray[np.int64]
    offsets: NDArray[np.float64]
    """(n, 2): centroid minus centre of the sprite's box, x and y."""
    values: NDArray[np.float32]
    areas: NDArray[np.float32]
    squares: NDArray[np.float32]


def _centroid(coverage: Plane) -> tuple[float, float]:
    """(x, y) of the middle of mass, pixel centres at halves."""
    total = float(coverage.sum())
    x = float(coverage.sum(axis=0) @ (np.arange(coverage.shape[1]) + 0.5)) / total
    y = float(coverage.sum(axis=1) @ (np.arange(coverage.shape[0]) + 0.5)) / total
    return x, y


def _centred(plane: Plane, center: tuple[float, float]) -> Plane:
    """A _CANVAS square cut out around (x, y), zeros outside."""
    left, top = round(center[0] - _CANVAS / 2), round(center[1] - _CANVAS / 2)
    height, width = plane.shape
    cut = np.zeros((_CANVAS, _CANVAS), dtype=np.float32)
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + _CANVAS, width), min(top + _CANVAS, height)
    if x0 < x1 and y0 < y1:
        cut[y0 - top : y1 - top, x0 - left : x1 - left] = plane[y0:y1, x0:x1]
    return cut


@lru_cache(maxsize=4)
def _bank(kinds: tuple[str, ...]) -> _Bank:
    rows = []
    for kind in kinds:
        for side in _SIDES:
            for angle in _ANGLES:
                opacity = sprite(kind, side, angle).coverage[..., 0].astype(np.float32)
                coverage = blur(np.pad(opacity, 2) / np.float32(OPAQUE))
                x, y = _centroid(coverage)
                offset = (x - coverage.shape[1] / 2, y - coverage.shape[0] / 2)
                values = _centred(coverage, (x, y)).ravel()
                rows.append((float(values.sum()), kind, side, offset, values))
    rows.sort(key=lambda row: row[0])
    values = np.stack([row[4] for row in rows])
    return _Bank(
        kinds=tuple(row[1] for row in rows),
        sides=np.array([row[2] for row in rows]),
        offsets=np.array([row[3] for row in rows]),
        values=values,
        areas=np.array([row[0] for row in rows], dtype=np.float32),
        squares=(values**2).sum(axis=1),
    )


def _coverage(canvas: _Canvas, piece: Mask, others: Mask, rgb: Pixels) -> tuple[Plane, Mask]:
    """How much of each pixel the piece covers, 0 to 1, and its pixels that this does not explain.

    A pixel's coverage is where it lies from the background's colour to the piece's own; one far
    from that line, or half covered in the inside, shows something else.
    """
    line = rgb - canvas.ground.rgb
    offset = canvas.image - canvas.ground.rgb
    share = (offset @ line / max(float(line @ line), 1.0)).clip(0, 1)
    near = dilate(piece, 2) & ~others
    coverage = np.where(near, share, 0).astype(np.float32)
    distance = np.abs(offset - share[..., None] * line).max(axis=-1)
    inside = erode(piece, 1)
    strange = inside & (distance > _OFF_LINE) | erode(inside, 3) & (share < 0.6)
    return coverage, dilate(erode(strange, 1), 1) & strange


def _match(bank: _Bank, coverage: Plane) -> tuple[int, float]:
    """The drawing that overlaps best, and by how much: a . b / (|a|^2 + |b|^2 - a . b)."""
    area = float(coverage.sum())
    first, last = np.searchsorted(bank.areas, (area / _AREA_RATIO, area * _AREA_RATIO))
    if first == last:
        return -1, 0.0
    x, y = _centroid(coverage)
    cuts = [_centred(coverage, (x + dx, y + dy)).ravel() for dx in _SHIFTS for dy in _SHIFTS]
    products = (bank.values[first:last] @ np.stack(cuts, axis=1)).max(axis=1)
    square = float((coverage**2).sum())
    scores = products / (bank.squares[first:last] + square - products)
    best = int(scores.argmax())
    return int(first) + best, float(scores[best])


class Judge:
    """Reads pictures whose items are among `kinds`."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self._bank = _bank(kinds)

    def read(self, image: NDArray[np.uint8]) -> Reading:
        """Background and items of a picture (128, 128, 3).

        Raises:
            ValueError: another shape or data type.
        """
        if image.shape != (_BASE_SIDE, _BASE_SIDE, 3) or image.dtype != np.uint8:
            raise ValueError(
                f"a picture is ({_BASE_SIDE}, {_BASE_SIDE}, 3) uint8, "
                f"got {image.shape} {image.dtype}"
            )
        pixels = blur(image.astype(np.float32))
        labs = lab(pixels).astype(np.float32)
        nearest = nearest_colors(labs)
        canvas = _Canvas(pixels, labs, nearest, find_ground(pixels, labs, nearest))
        regions = components(canvas.ground.foreground)
        items = [item for region in regions for item in self._items(canvas, region, regions)]
        items.sort(key=lambda item: _area(item.box), reverse=True)
        return Reading(background=canvas.ground.name, items=tuple(items))

    def _items(self, canvas: _Canvas, region: Mask, regions: list[Mask]) -> list[FoundItem]:
        """The region as one item and what shows in it, or as several items that touch."""
        whole, spots = self._item(canvas, region, regions)
        if whole.kind != UNKNOWN:
            return [whole, *(self._item(canvas, spot, [])[0] for spot in spots)]
        pieces = split_by_color(region, canvas.labs, canvas.nearest)
        if len(pieces) == 1:
            return self._parts(canvas, region, regions, whole)
        items = [(piece, self._item(canvas, piece, pieces)[0]) for piece in pieces]
        return [part for pair in items for part in self._parts(canvas, pair[0], pieces, pair[1])]

    def _parts(
        self, canvas: _Canvas, piece: Mask, pieces: list[Mask], whole: FoundItem
    ) -> list[FoundItem]:
        """A piece of one colour: itself, or items that touch if each of them is then recognised."""
        parts = split_at_necks(piece) if whole.kind == UNKNOWN else []
        if len(parts) < 2:
            return [whole]
        items = [self._item(canvas, part, [*pieces, *parts])[0] for part in parts]
        return items if all(item.kind != UNKNOWN for item in items) else [whole]

    def _item(
        self, canvas: _Canvas, piece: Mask, pieces: list[Mask]
    ) -> tuple[FoundItem, list[Mask]]:
        """The piece as one item, and spots of other colours that show in it."""
        rgb = np.median(canvas.image[main_color(piece, canvas.nearest)], axis=0)
        others = np.zeros_like(piece)
        for other in pieces:
            others |= other
        coverage, strange = _coverage(canvas, piece, others & ~piece, rgb.astype(np.float32))
        row, score = _match(self._bank, coverage) if coverage.any() else (-1, 0.0)
        box = mask_box(piece)
        kind, extent = UNKNOWN, float(max(box[2] - box[0], box[3] - box[1]))
        center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        if score >= MIN_SCORE:
            kind, extent = self._bank.kinds[row], float(self._bank.sides[row])
            x, y = _centroid(coverage)
            dx, dy = self._bank.offsets[row].tolist()
            center = (x - dx, y - dy)
        color = color_name(rgb)
        spots = [
            spot
            for spot in components(strange)
            if color_name(np.median(canvas.image[spot], axis=0)) != color
        ]
        item = FoundItem(kind=kind, color=color, center=center, box=box, extent=extent, score=score)
        return item, spots


def _area(box: tuple[int, int, int, int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])
