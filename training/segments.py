"""From pixels to regions: smoothing, the plain background, and connected pieces of one colour.

Masks are (H, W) bool. Colours are compared in CIELAB, in the units of `palette.py`.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.palette import COLORS, lab

Mask = NDArray[np.bool_]
Plane = NDArray[np.float32]
Pixels = NDArray[np.float32]

UNKNOWN = "unknown"
"""Name of a colour or kind that is none of the known ones."""

MIN_AREA = 25
"""Smaller specks are noise, larger ones are something drawn."""

# Half of palette.MIN_DISTANCE, less a little: where an item covers about half of a pixel.
_FOREGROUND_DISTANCE = 19.0
# A colour further from all names has none; the two closest names are 32 apart.
_MAX_COLOR_DISTANCE = 30.0
# A second colour of that many core pixels, and that share of them, is another item.
_MIN_COLOR_SHARE = 0.1

COLOR_NAMES = tuple(COLORS)
_PALETTE_LAB = lab(np.array(list(COLORS.values()), dtype=np.float64)).astype(np.float32)


@dataclass(frozen=True)
class Ground:
    """The plain background of a picture: its name, mean-free colour (3,) and what is not of it."""

    name: str
    rgb: Pixels
    foreground: Mask


def blur(values: Plane) -> Plane:
    """Binomial 3x3 filter over the first two axes; the edge is repeated."""
    edges = [(1, 1), (1, 1), *[(0, 0)] * (values.ndim - 2)]
    padded = np.pad(values, edges, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 16, dtype=np.float32)


def erode(mask: Mask, radius: int) -> Mask:
    """Pixels with only true ones within `radius` rows and columns; the outside is true."""
    return ~dilate(~mask, radius)


def dilate(mask: Mask, radius: int) -> Mask:
    """Pixels with a true one within `radius` rows and columns."""
    for axis in (0, 1):
        grown = mask.copy()
        for shift in range(1, radius + 1):
            low = np.s_[:-shift] if axis == 0 else np.s_[:, :-shift]
            high = np.s_[shift:] if axis == 0 else np.s_[:, shift:]
            grown[high] |= mask[low]
            grown[low] |= mask[high]
        mask = grown
    return mask


def _runs(mask: Mask) -> list[tuple[int, int, int]]:
    """(row, first, last + 1) of each horizontal run of true pixels, in reading order."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    ends = np.nonzero(edges == -1)[1]
    return list(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True))


def components(mask: Mask, min_area: int = MIN_AREA) -> list[Mask]:
    """Pieces of `mask` that hang together by sides or corners, largest first."""
    runs = _runs(mask)
    parent = list(range(len(runs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    above, current = range(0), range(0)
    bounds = [0, *(i for i in range(1, len(runs)) if runs[i][0] != runs[i - 1][0]), len(runs)]
    for first, last in pairwise(bounds):
        above, current = current, range(first, last)
        if not above or runs[above[0]][0] + 1 != runs[current[0]][0]:
            continue
        for i in current:
            for j in above:
                if runs[i][1] <= runs[j][2] and runs[j][1] <= runs[i][2]:
                    parent[root(i)] = root(j)
    pieces: dict[int, Mask] = {}
    for i, (row, start, end) in enumerate(runs):
        pieces.setdefault(root(i), np.zeros_like(mask))[row, start:end] = True
    sized = sorted(((int(piece.sum()), n) for n, piece in enumerate(pieces.values())), reverse=True)
    ordered = list(pieces.values())
    return [ordered[n] for area, n in sized if area >= min_area]


def nearest_colors(labs: Pixels) -> NDArray[np.intp]:
    """Index into COLOR_NAMES of the nearest palette colour; (..., 3) -> (...)."""
    # |p - c|^2 without |p|^2, which is the same for all c.
    scores = labs @ (-2 * _PALETTE_LAB.T) + (_PALETTE_LAB**2).sum(axis=1)
    return np.asarray(scores.argmin(axis=-1))


def color_name(rgb: Pixels) -> str:
    """Name of the palette colour nearest to an sRGB value in [0, 255]; UNKNOWN if none is near."""
    value = lab(rgb).astype(np.float32)
    index = int(nearest_colors(value))
    near = np.linalg.norm(value - _PALETTE_LAB[index]) <= _MAX_COLOR_DISTANCE
    return COLOR_NAMES[index] if near else UNKNOWN


def differs(labs: Pixels, ground: NDArray[np.floating[Any]]) -> Mask:
    """Pixels that are clearly not of a background's colour; CIELAB values."""
    distance = ((labs - ground) ** 2).sum(axis=-1)
    return np.asarray(distance > _FOREGROUND_DISTANCE**2)


def group_near(pieces: list[Mask], gap: int) -> list[Mask]:
    """Unites pieces that lie at most about two `gap` pixels apart."""
    if len(pieces) < 2:
        return pieces
    solid = np.any(pieces, axis=0)
    return [wide & solid for wide in components(dilate(solid, gap))]


def find_ground(image: Pixels, labs: Pixels, nearest: NDArray[np.intp]) -> Ground:
    """The commonest colour of the picture, its border counted twice."""
    counts = np.bincount(nearest.ravel(), minlength=len(COLOR_NAMES))
    for edge in (nearest[:2], nearest[-2:], nearest[:, :2], nearest[:, -2:]):
        counts += np.bincount(edge.ravel(), minlength=len(COLOR_NAMES))
    of_ground = nearest == counts.argmax()
    for _ in range(2):  # the second time, pixels that fell to a neighbouring colour count too
        center = np.median(labs[of_ground], axis=0)
        of_ground = ~differs(labs, center)
        if not of_ground.any():
            break
    rgb = np.median(image[of_ground], axis=0) if of_ground.any() else image.mean(axis=(0, 1))
    return Ground(color_name(rgb), rgb.astype(np.float32), ~of_ground)


def core(mask: Mask) -> Mask:
    """The inside of a region, without pixels that its edge mixes with what is around."""
    for radius in (2, 1):
        inside = erode(mask, radius)
        if inside.sum() >= MIN_AREA // 2:
            return inside
    return mask


def main_color(region: Mask, nearest: NDArray[np.intp]) -> Mask:
    """The inner pixels of a region that have the commonest colour there."""
    inside = core(region)
    counts = np.bincount(nearest[inside], minlength=len(COLOR_NAMES))
    return np.asarray(inside & (nearest == counts.argmax()))


def split_by_color(region: Mask, labs: Pixels, nearest: NDArray[np.intp]) -> list[Mask]:
    """Pieces of one colour each, where the inside of a region has several; else itself."""
    inside = core(region)
    counts = np.bincount(nearest[inside], minlength=len(COLOR_NAMES))
    main = np.flatnonzero(counts >= max(MIN_AREA // 2, _MIN_COLOR_SHARE * inside.sum()))
    if len(main) < 2:
        return [region]
    distances = ((labs[..., None, :] - _PALETTE_LAB[main]) ** 2).sum(axis=-1)
    owner = main[distances.argmin(axis=-1)]
    pieces = []
    for color in main:
        part = region & (owner == color)
        pieces += components(dilate(erode(part, 1), 1) & part)
    return pieces or [region]


def split_at_necks(region: Mask) -> list[Mask]:
    """Pieces that a region falls into when worn down from its edge, grown back; else itself."""
    for radius in range(1, 13):
        worn = erode(region, radius)
        seeds = components(worn, MIN_AREA // 2)
        if not seeds:
            break
        if len(seeds) > 1:
            return _grow(seeds, region, radius + 3)
    return [region]


def _grow(seeds: list[Mask], region: Mask, num_rounds: int) -> list[Mask]:
    free = region.copy()
    for seed in seeds:
        free &= ~seed
    for _ in range(num_rounds):
        for n, seed in enumerate(seeds):
            gained = dilate(seed, 1) & free
            free &= ~gained
            seeds[n] = seed | gained
    return seeds
