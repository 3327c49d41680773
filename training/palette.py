"""The eleven colours, and which of them a person tells apart when one lies on the other.

Distances are Euclidean in CIELAB (D65, 2 degrees; the CIE 1976 colour difference), in its usual
units: about 2 is just visible, 100 is black to white.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (218, 32, 38),
    "orange": (255, 138, 12),
    "yellow": (252, 222, 42),
    "green": (36, 158, 66),
    "blue": (36, 92, 222),
    "purple": (126, 44, 172),
    "pink": (255, 150, 196),
    "brown": (116, 70, 34),
    "black": (18, 18, 20),
    "white": (250, 250, 250),
    "gray": (142, 144, 148),
}

MIN_DISTANCE = 42.0

# Far enough apart in CIELAB, and yet people hesitate between the two names when one is drawn on the
# other, above all after a lossy decoder.
_CONFUSED = frozenset(
    frozenset(pair)
    for pair in (
        ("red", "orange"),
        ("red", "brown"),
        ("red", "pink"),
        ("orange", "yellow"),
        ("orange", "brown"),
        ("orange", "pink"),
        ("purple", "pink"),
        ("purple", "blue"),
        ("purple", "brown"),
        ("brown", "black"),
        ("brown", "gray"),
        ("white", "pink"),
    )
)

_XYZ_FROM_LINEAR_RGB = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
     [0.0193339, 0.1191920, 0.9503041]]
)  # fmt: skip
_WHITE_XYZ = np.array([0.95047, 1.0, 1.08883])


def lab(rgb: NDArray[np.generic] | tuple[int, int, int]) -> NDArray[np.float64]:
    """CIELAB of sRGB values in [0, 255]; (..., 3) -> (..., 3)."""
    srgb = np.asarray(rgb, dtype=np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _XYZ_FROM_LINEAR_RGB.T / _WHITE_XYZ
    cut = (6 / 29) ** 3
    f = np.where(xyz > cut, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    fx, fy, fz = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=-1)


@cache
def color_distance(color: str, rgb: tuple[int, int, int]) -> float:
    """CIELAB distance between a named colour and an sRGB value in [0, 255]."""
    return float(np.linalg.norm(lab(COLORS[color]) - lab(rgb)))


@cache
def colors_contrast(color: str, ground: str) -> bool:
    """Whether `color` drawn on `ground` is seen at once and named without hesitation."""
    if frozenset((color, ground)) in _CONFUSED:
        return False
    return color_distance(color, COLORS[ground]) >= MIN_DISTANCE
