"""Backgrounds: plain colours, two-coloured patterns and simple scenes, as sRGB images."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from training.palette import COLORS

Rgb = tuple[int, int, int]

# The colour that a person would give as the background of each scene.
SCENE_MAIN_COLOR = {
    "grass": "green",
    "sky": "blue",
    "sand": "yellow",
    "snow": "white",
    "night": "black",
}

# Darker and lighter end of each scene's ground; then details on it.
_SCENE_COLORS: dict[str, tuple[Rgb, Rgb, Rgb]] = {
    "grass": ((58, 140, 52), (104, 180, 74), (34, 108, 40)),
    "sky": ((84, 152, 236), (162, 206, 250), (250, 252, 255)),
    "sand": ((214, 180, 116), (240, 214, 156), (186, 150, 92)),
    "snow": ((214, 226, 244), (248, 251, 255), (190, 206, 232)),
    "night": ((8, 10, 30), (26, 30, 74), (250, 246, 214)),
}

NUM_TEXTURES = 8
_TEXTURE_SEED = 7
_CELL_SHARE = 1 / 8  # stripes, checkers and the grid of dots repeat with the patches of a ViT


@lru_cache(maxsize=1024)
def ground_samples(style: str, colors: tuple[str, ...], scene: str | None) -> tuple[Rgb, ...]:
    """sRGB values that an item on this background must be told from."""
    if scene is not None:
        dark, light, detail = _SCENE_COLORS[scene]
        # Stars are dots; clouds, blades and ripples are large enough to hide something.
        return (dark, light) if scene == "night" else (dark, light, detail)
    named = [COLORS[color] for color in colors]
    if style == "gradient":
        top, bottom = np.array(named[0]), np.array(named[1])
        shares = (0.25, 0.5, 0.75)
        named += [_rgb(top + (bottom - top) * share) for share in shares]
    return tuple(named)


def _rgb(values: NDArray[np.float64]) -> Rgb:
    red, green, blue = (round(float(value)) for value in values)
    return (red, green, blue)


@lru_cache(maxsize=768)
def paint_background(
    style: str, colors: tuple[str, ...], scene: str | None, texture: int, image_size: int
) -> NDArray[np.uint8]:
    """The empty background, (image_size, image_size, 3) uint8; `texture` in [0, NUM_TEXTURES).

    The array is shared between calls: copy before drawing on it.
    """
    if scene is not None:
        return _paint_scene(scene, texture, image_size)
    first = np.array(COLORS[colors[0]], dtype=np.float64)
    second = np.array(COLORS[colors[-1]], dtype=np.float64)
    share = _second_share(style, image_size)[..., None]
    image = np.rint(first + (second - first) * share).astype(np.uint8)
    image.setflags(write=False)
    return image


def _second_share(style: str, image_size: int) -> NDArray[np.float64]:
    """(image_size, image_size): how much of the second colour each pixel has."""
    size = image_size
    y, x = np.mgrid[0:size, 0:size] + 0.5
    cell = size * _CELL_SHARE
    if style == "plain":
        share = np.zeros((size, size))
    elif style == "gradient":
        share = (y - 0.5) / (size - 1)
    elif style == "stripes":
        share = np.floor(x / cell) % 2
    elif style == "checkers":
        share = (np.floor(x / cell) + np.floor(y / cell)) % 2
    elif style == "dots":
        share = cell * 0.24 + 0.5 - np.hypot(x % cell - cell / 2, y % cell - cell / 2)
    else:
        raise ValueError(f"unknown background style {style!r}")
    return np.asarray(share.clip(0, 1), dtype=np.float64)


def _smooth_noise(
    rng: np.random.Generator, size: int, rows: int, columns: int
) -> NDArray[np.float64]:
    """(size, size) in [0, 1]: random values on a coarse grid, interpolated with cosine weights."""
    grid = rng.random((rows + 1, columns + 1))

    def weights(cells: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        at = (np.arange(size) + 0.5) / size * cells
        low = np.minimum(at.astype(np.intp), cells - 1)
        return low, (1 - np.cos((at - low) * np.pi)) / 2

    (y, wy), (x, wx) = weights(rows), weights(columns)
    wy, wx = wy[:, None], wx[None, :]
    top = grid[y][:, x] * (1 - wx) + grid[y][:, x + 1] * wx
    bottom = grid[y + 1][:, x] * (1 - wx) + grid[y + 1][:, x + 1] * wx
    return top * (1 - wy) + bottom * wy


def _paint_scene(scene: str, texture: int, size: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng([_TEXTURE_SEED, list(_SCENE_COLORS).index(scene), texture])
    dark, light, detail = (np.array(rgb, dtype=np.float64) for rgb in _SCENE_COLORS[scene])
    y, x = np.mgrid[0:size, 0:size] / size
    if scene == "grass":
        tone = 0.25 + 0.5 * _smooth_noise(rng, size, 5, 5)
        blades = _smooth_noise(rng, size, size // 10, size // 3) > 0.72
        details = 0.7 * blades
    elif scene == "sky":
        tone = 0.1 + 0.8 * y
        clouds = 0.6 * _smooth_noise(rng, size, 6, 3) + 0.4 * _smooth_noise(rng, size, 12, 7)
        details = np.clip((clouds - 0.58) * 6, 0, 0.9)
    elif scene == "sand":
        tone = 0.3 + 0.5 * _smooth_noise(rng, size, 4, 4) + 0.25 * (rng.random((size, size)) - 0.5)
        phase = y * 7 + 0.9 * _smooth_noise(rng, size, 3, 3)
        details = 0.45 * np.clip(np.cos(phase * 2 * np.pi) * 3 - 2.2, 0, 1)
    elif scene == "snow":
        tone = 0.55 + 0.45 * _smooth_noise(rng, size, 4, 3)
        hills = 0.35 * _smooth_noise(rng, size, 1, 3)
        edge = (y * 3 + hills) % 1
        details = 0.55 * np.clip(1 - edge * 5, 0, 1)
    else:
        tone = y * 0.9 + 0.1 * _smooth_noise(rng, size, 4, 4)
        details = _stars(rng, x * size, y * size, size)
    ground = dark + (light - dark) * np.clip(tone, 0, 1)[..., None]
    image = ground + (detail - ground) * details[..., None]
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    pixels.setflags(write=False)
    return pixels


def _stars(
    rng: np.random.Generator, x: NDArray[np.float64], y: NDArray[np.float64], size: int
) -> NDArray[np.float64]:
    light = np.zeros((size, size))
    for _ in range(28):
        star_x, star_y, radius = rng.random() * size, rng.random() * size, 0.5 + rng.random() * 0.9
        distance = np.hypot(x - star_x, y - star_y)
        light = np.maximum(light, np.clip(radius - distance + 0.5, 0, 1))
    return light
