"""Which colours and things stand out on which background.

A background is given by samples of the sRGB values it holds; whatever is drawn on it must be told
from every one of them.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from training.nouns import THINGS
from training.palette import COLORS, MIN_DISTANCE, color_distance, colors_contrast, lab
from training.sprites import thing_image

Rgb = tuple[int, int, int]

# A thing has many colours: enough of its pixels must differ clearly from the ground.
_THING_PIXEL_DISTANCE = 26.0
_THING_MIN_SHARE = 0.6
_THING_SAMPLE_SIDE = 20


@lru_cache(maxsize=1024)
def colors_on(named: tuple[str, ...], samples: tuple[Rgb, ...]) -> frozenset[str]:
    """Colours that stand out on a background of the `named` colours, holding the `samples`."""
    return frozenset(
        color
        for color in COLORS
        if all(colors_contrast(color, ground) for ground in named)
        and all(color_distance(color, rgb) >= MIN_DISTANCE for rgb in samples)
    )


@lru_cache(maxsize=1)
def _thing_labs() -> tuple[NDArray[np.float64], ...]:
    side = _THING_SAMPLE_SIDE
    labs = []
    for name in THINGS:
        pixels = np.asarray(thing_image(name).resize((side, side)))
        labs.append(lab(pixels[pixels[..., 3] > 127][:, :3]))
    return tuple(labs)


@lru_cache(maxsize=1024)
def _things_on_color(rgb: Rgb) -> frozenset[str]:
    ground = lab(rgb)
    shares = [
        (np.linalg.norm(pixels - ground, axis=1) > _THING_PIXEL_DISTANCE).mean()
        for pixels in _thing_labs()
    ]
    return frozenset(
        name for name, share in zip(THINGS, shares, strict=True) if share >= _THING_MIN_SHARE
    )


@lru_cache(maxsize=1024)
def things_on(samples: tuple[Rgb, ...]) -> frozenset[str]:
    """Things that stand out on a background that holds the samples."""
    return frozenset.intersection(*(_things_on_color(rgb) for rgb in samples))
