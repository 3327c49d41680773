"""Where items of a scene stand: anchors of the nine positions and groups of places without overlap.

Lengths are for an image of 128 pixels and scale with the image's side.
"""

import numpy as np

POSITIONS = (
    "left",
    "right",
    "top",
    "bottom",
    "center",
    "top left",
    "top right",
    "bottom left",
    "bottom right",
)

EXTENTS = {"large": (52, 54, 56, 58, 60), "small": (28, 30, 32, 34)}
JITTER = 5

_BASE_SIDE = 128
# Distance of an off-centre anchor from the nearer edge.
_INSET = {"large": 32, "small": 24}

# Two items stand opposite each other, so that "left of" and "above" are never in doubt.
PAIRS = (
    ("left", "right"),
    ("top", "bottom"),
    ("top left", "bottom right"),
    ("top right", "bottom left"),
)
ROW = ("left", "center", "right")
COLUMN = ("top", "center", "bottom")
# Two items along one edge, a third one opposite. The relation is of the two to the third.
PAIR_AND_ONE = {
    "above": ("top left", "top right", "bottom"),
    "below": ("bottom left", "bottom right", "top"),
    "to the left of": ("top left", "bottom left", "right"),
    "to the right of": ("top right", "bottom right", "left"),
}
TRIPLES = (
    *PAIR_AND_ONE.values(),
    ("top left", "top right", "bottom left"),
    ("top left", "top right", "bottom right"),
    ("bottom left", "bottom right", "top left"),
    ("bottom left", "bottom right", "top right"),
)


Center = tuple[float, float]
Spot = tuple[str, str, float]


def anchor(position: str, size: str, image_size: int) -> Center:
    """Centre (x, y), in pixels, that an item of that size has at a position before jitter."""
    inset = _INSET[size]
    x = inset if "left" in position else _BASE_SIDE - inset if "right" in position else 64
    y = inset if "top" in position else _BASE_SIDE - inset if "bottom" in position else 64
    scale = image_size / _BASE_SIDE
    return (x * scale, y * scale)


def extents(size: str, image_size: int) -> tuple[int, ...]:
    """Sides of the sprite box, in pixels, that an item of that size may have."""
    scale = image_size / _BASE_SIDE
    return tuple(round(extent * scale) for extent in EXTENTS[size])


def apart(center: Center, extent: float, other: Center, other_extent: float) -> bool:
    """Whether two sprite boxes share no pixel, with one pixel between them."""
    room = (extent + other_extent) / 2 + 1
    return abs(center[0] - other[0]) >= room or abs(center[1] - other[1]) >= room


def jittered(rng: np.random.Generator, spot: Spot, image_size: int) -> Center:
    """The anchor of (position, size, extent) moved by up to JITTER, the box kept in the image."""
    position, size, extent = spot
    reach = round(JITTER * image_size / _BASE_SIDE)
    x, y = anchor(position, size, image_size)
    low, high = extent / 2, image_size - extent / 2
    x += int(rng.random() * (2 * reach + 1)) - reach
    y += int(rng.random() * (2 * reach + 1)) - reach
    return (min(max(x, low), high), min(max(y, low), high))


def place(
    rng: np.random.Generator,
    spots: tuple[Spot, ...],
    image_size: int,
    taken: tuple[tuple[Center, float], ...] = (),
) -> tuple[Center, ...] | None:
    """Centres for the spots (position, size, extent), apart from each other and from `taken`.

    Jitter is drawn anew when boxes touch, and left out if that happens too often. None if the spots
    do not fit even without it.
    """
    for attempt in range(9):
        occupied = list(taken)
        for spot in spots:
            last = attempt == 8
            center = (
                anchor(spot[0], spot[1], image_size) if last else jittered(rng, spot, image_size)
            )
            if not all(apart(center, spot[2], *other) for other in occupied):
                break
            occupied.append((center, spot[2]))
        else:
            return tuple(center for center, _ in occupied[len(taken) :])
    return None
