"""Recognises shapes: a coverage map against the drawings of every kind, size and turn."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from training.layout import EXTENTS
from training.segments import Plane, blur
from training.sprites import OPAQUE, sprite

_ANGLES = (-8.0, -4.0, 0.0, 4.0, 8.0)
# Sides beyond those that are drawn, so that a picture slightly off in size keeps its kind.
_SIDES = range(min(EXTENTS["small"]) - 4, max(EXTENTS["large"]) + 8, 2)
_CANVAS = 80
_SHIFTS = (-1, 0, 1)
_AREA_RATIO = 1.3


@dataclass(frozen=True)
class ShapeMatch:
    """The best shape; center (x, y) and extent of its sprite's box in pixels; score 0 to 1."""

    kind: str
    center: tuple[float, float]
    extent: float
    score: float


@dataclass(frozen=True)
class _Drawings:
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
def _drawings(kinds: tuple[str, ...]) -> _Drawings:
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
    return _Drawings(
        kinds=tuple(row[1] for row in rows),
        sides=np.array([row[2] for row in rows]),
        offsets=np.array([row[3] for row in rows]),
        values=values,
        areas=np.array([row[0] for row in rows], dtype=np.float32),
        squares=(values**2).sum(axis=1),
    )


def match_shape(kinds: tuple[str, ...], coverage: Plane) -> ShapeMatch | None:
    """The drawing that overlaps best with a coverage map (H, W) in [0, 1]; None if none is near.

    The score is a . b / (|a|^2 + |b|^2 - a . b), the overlap of two masks carried over to coverage.
    """
    area = float(coverage.sum())
    drawings = _drawings(kinds)
    first, last = np.searchsorted(drawings.areas, (area / _AREA_RATIO, area * _AREA_RATIO))
    if first == last:
        return None
    x, y = _centroid(coverage)
    cuts = [_centred(coverage, (x + dx, y + dy)).ravel() for dx in _SHIFTS for dy in _SHIFTS]
    products = (drawings.values[first:last] @ np.stack(cuts, axis=1)).max(axis=1)
    square = float((coverage**2).sum())
    scores = products / (drawings.squares[first:last] + square - products)
    row = int(first) + int(scores.argmax())
    dx, dy = drawings.offsets[row].tolist()
    return ShapeMatch(
        kind=drawings.kinds[row],
        center=(x - dx, y - dy),
        extent=float(drawings.sides[row]),
        score=float(scores.max()),
    )
