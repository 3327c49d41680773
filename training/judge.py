"""Reads from pixels alone what a picture of stickers shows. Nothing here is learned.

A picture is a plain background and pieces that differ from it; each piece is compared with the
drawings of every kind. Needs no torch, so it runs beside any sampler.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.nouns import SHAPES, THINGS
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
    group_near,
    main_color,
    nearest_colors,
    split_at_necks,
    split_by_color,
)
from training.shape_matching import match_shape
from training.sprites import mask_box
from training.thing_matching import MIN_THING_SCORE, match_thing

MIN_SCORE = 0.86
"""Below this overlap with its best drawing an item is `unknown`."""

_BASE_SIDE = 128
# Parts of one thing, between which it has the background's colour, lie at most twice this apart.
_THING_GAP = 2
# Largest distance, in sRGB values, of a pixel's mixture from the line between two colours.
_OFF_LINE = 45.0


@dataclass(frozen=True, kw_only=True)
class FoundItem:
    """kind and color: names, or "unknown"; a thing's color is None; center (x, y) and box
    (x0, y0, x1, y1) in pixels; extent: side of the best drawing's box; score: how well that
    drawing fits, at most 1; flatness: share of the item's contrast with the background that one
    colour explains, at most 1.
    """

    kind: str
    color: str | None
    center: tuple[float, float]
    box: tuple[int, int, int, int]
    extent: float
    score: float
    flatness: float


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
class _Layer:
    """A piece as a layer of one colour on the background; strange: pixels that show another."""

    coverage: Plane
    strange: Mask
    flatness: float


def _as_layer(canvas: _Canvas, piece: Mask, others: Mask, rgb: Pixels) -> _Layer:
    """A pixel's coverage is where it lies from the background's colour to the piece's own; one far
    from that line, or half covered in the inside, shows something else.
    """
    line = rgb - canvas.ground.rgb
    offset = canvas.image - canvas.ground.rgb
    share = (offset @ line / max(float(line @ line), 1.0)).clip(0, 1)
    near = dilate(piece, 2) & ~others
    rest = offset - share[..., None] * line
    inside = erode(piece, 1)
    strange = inside & (np.abs(rest).max(axis=-1) > _OFF_LINE)
    strange |= erode(inside, 3) & (share < 0.6)
    contrast = float((offset[piece] ** 2).sum())
    return _Layer(
        coverage=np.where(near, share, 0).astype(np.float32),
        strange=dilate(erode(strange, 1), 1) & strange,
        flatness=1 - float((rest[piece] ** 2).sum()) / max(contrast, 1.0),
    )


class Judge:
    """Reads pictures whose items are among `kinds`, shapes and things, on plain backgrounds."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self._shapes = tuple(kind for kind in kinds if kind in SHAPES) or SHAPES
        self._things = tuple(kind for kind in kinds if kind in THINGS)

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
        if self._things:
            groups = group_near(regions, _THING_GAP)
            items = [item for group in groups for item in self._group(canvas, group)]
        else:
            items = [item for region in regions for item in self._items(canvas, region, regions)]
        items.sort(key=lambda item: _area(item.box), reverse=True)
        return Reading(background=canvas.ground.name, items=tuple(items))

    def _group(self, canvas: _Canvas, group: Mask) -> list[FoundItem]:
        """Regions that lie near each other: parts of one thing, or shapes."""
        regions = components(group)
        items = [item for region in regions for item in self._items(canvas, region, regions)]
        ground = canvas.ground
        if ground.name == UNKNOWN:
            return items
        match = match_thing(self._things, canvas.image, group, ground.name, ground.rgb)
        as_shapes = min(item.score * item.flatness for item in items)
        if match.score < max(MIN_THING_SCORE, as_shapes):
            return items
        thing = FoundItem(
            kind=match.kind,
            color=None,
            center=match.center,
            box=mask_box(group),
            extent=match.extent,
            score=match.score,
            flatness=min(item.flatness for item in items),
        )
        return [thing]

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
        layer = _as_layer(canvas, piece, others & ~piece, rgb.astype(np.float32))
        match = match_shape(self._shapes, layer.coverage) if layer.coverage.any() else None
        box, color = mask_box(piece), color_name(rgb)
        known = match is not None and match.score >= MIN_SCORE
        item = FoundItem(
            kind=match.kind if match and known else UNKNOWN,
            color=color,
            center=match.center if match and known else _middle(box),
            box=box,
            extent=match.extent if match and known else float(max(_sides(box))),
            score=match.score if match else 0.0,
            flatness=layer.flatness,
        )
        spots = [
            spot
            for spot in components(layer.strange)
            if color_name(np.median(canvas.image[spot], axis=0)) != color
        ]
        return item, spots


def _sides(box: tuple[int, int, int, int]) -> tuple[int, int]:
    return box[2] - box[0], box[3] - box[1]


def _middle(box: tuple[int, int, int, int]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _area(box: tuple[int, int, int, int]) -> int:
    width, height = _sides(box)
    return width * height
