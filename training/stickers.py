"""Sampling of sticker scenes, and the front door to their vocabulary and descriptions.

Every random choice takes a `numpy.random.Generator`, so a seed decides a data set.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from training.backgrounds import SCENE_MAIN_COLOR, ground_samples
from training.contrast import colors_on, things_on
from training.layout import COLUMN, PAIR_AND_ONE, PAIRS, POSITIONS, ROW, TRIPLES, extents, place
from training.nouns import SHAPES, THINGS
from training.palette import COLORS, colors_contrast
from training.scenes import (
    COUNTED_WORLD,
    FULL_WORLD,
    SHAPES_WORLD,
    SIZES,
    Background,
    Item,
    Scene,
    World,
)

__all__ = [
    "COLORS",
    "COUNTED_WORLD",
    "FULL_WORLD",
    "POSITIONS",
    "SHAPES",
    "SHAPES_WORLD",
    "SIZES",
    "THINGS",
    "Background",
    "Item",
    "Scene",
    "World",
    "drawable",
    "sample_scene",
]

_SHAPE_ANGLES = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)
# Fewer turns for things: there are many of them, and each turned sprite is kept in memory.
_THING_ANGLES = (-6.0, 0.0, 6.0)
_COUNT_SHARE = 0.25
_LARGE_SHARE = 0.7
# Upper ends of the shares of scenes with one, two, ... items.
_NUM_ITEMS_CUTS = {1: (1.0,), 2: (0.5, 1.0), 3: (0.45, 0.8, 1.0)}
_MAX_ATTEMPTS = 1000

T = TypeVar("T")


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each as likely. Far faster than `Generator.choice` for one draw."""
    return options[int(rng.random() * len(options))]


def drawable(world: World) -> dict[str, Any]:
    """JSON-able summary of a world, for a bundle's manifest."""
    return {
        "shapes": list(world.shapes),
        "colors": list(world.colors),
        "things": list(world.things),
        "sizes": list(world.sizes),
        "positions": list(world.positions),
        "background_styles": list(world.background_styles),
        "scenes": list(world.scenes),
        "max_items": world.max_items,
        "counts": world.same_kind_counts,
        "edit_kinds": list(world.edit_kinds),
        "image_size": world.image_size,
    }


def stands_out(kind: str, color: str | None, background: Background) -> bool:
    """Whether an item of that kind and colour is seen at once on the background."""
    grounds = ground_samples(background.style, background.colors, background.scene)
    if color is None:
        return kind in things_on(grounds)
    return color in colors_on(background.colors, grounds)


def sample_background(rng: np.random.Generator, world: World) -> Background:
    """Draws a style and its colours; the two colours of a pattern contrast."""
    style = pick(rng, world.background_styles)
    if style == "scene":
        scene = pick(rng, world.scenes)
        return Background(style=style, colors=(SCENE_MAIN_COLOR[scene],), scene=scene)
    main = pick(rng, world.colors)
    if style == "plain":
        return Background(style=style, colors=(main,), scene=None)
    others = [color for color in world.colors if colors_contrast(color, main)]
    return Background(style=style, colors=(main, pick(rng, others)), scene=None)


@lru_cache(maxsize=1024)
def _choices(background: Background, world: World) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Colours and things of the world that stand out on the background."""
    grounds = ground_samples(background.style, background.colors, background.scene)
    colors = colors_on(background.colors, grounds)
    things = things_on(grounds)
    return (
        tuple(color for color in world.colors if color in colors),
        tuple(thing for thing in world.things if thing in things),
    )


def sample_look(
    rng: np.random.Generator, world: World, background: Background
) -> tuple[str, str | None] | None:
    """Kind and colour of an item that stands out on the background; None if the world has none."""
    colors, things = _choices(background, world)
    use_thing = bool(things) and (not world.shapes or not colors or rng.random() < 0.5)
    if use_thing:
        return pick(rng, things), None
    if world.shapes and colors:
        return pick(rng, world.shapes), pick(rng, colors)
    return None


def sample_angle(rng: np.random.Generator, color: str | None) -> float:
    """A slight turn in degrees, clockwise."""
    return pick(rng, _THING_ANGLES if color is None else _SHAPE_ANGLES)


def _sample_size(rng: np.random.Generator, world: World) -> str:
    if len(world.sizes) == 1:
        return world.sizes[0]
    return "large" if rng.random() < _LARGE_SHARE else "small"


def _sample_looks(
    rng: np.random.Generator, world: World, background: Background, num_different: int
) -> list[tuple[str, str | None]] | None:
    looks: list[tuple[str, str | None]] = []
    for _ in range(num_different):
        look = sample_look(rng, world, background)
        if look is None or look in looks:
            return None
        looks.append(look)
    return looks


def _arrange(
    rng: np.random.Generator, num_items: int, num_different: int, all_small: bool
) -> tuple[str, ...]:
    """Positions for the items. Equal items stand so that a caption can say how."""
    group: tuple[str, ...]
    if num_items == 2:
        group = pick(rng, PAIRS if num_different == 2 else PAIRS[:2])
    elif num_different == 2:
        return pick(rng, tuple(PAIR_AND_ONE.values()))
    elif num_different == 1 and all_small:
        group = pick(rng, (ROW, COLUMN))
    else:
        group = pick(rng, (*TRIPLES, ROW, COLUMN) if all_small else TRIPLES)
    return tuple(group[i] for i in rng.permutation(num_items))


def _try_scene(
    rng: np.random.Generator, world: World, num_items: int, num_different: int
) -> Scene | None:
    background = sample_background(rng, world)
    looks = _sample_looks(rng, world, background, num_different)
    if looks is None:
        return None
    sizes = [_sample_size(rng, world) for _ in looks]
    while len(looks) < num_items:  # the first look is the one that repeats
        looks.insert(0, looks[0])
        sizes.insert(0, sizes[0])
    if num_items == 1:
        positions: tuple[str, ...] = (pick(rng, world.positions),)
    else:
        positions = _arrange(rng, num_items, num_different, "large" not in sizes)
    if any(position not in world.positions for position in positions):
        return None
    sides = [pick(rng, extents(size, world.image_size)) for size in sizes]
    centers = place(rng, tuple(zip(positions, sizes, sides, strict=True)), world.image_size)
    if centers is None:
        return None
    items = tuple(
        Item(
            kind=kind,
            color=color,
            size=size,
            position=position,
            center=center,
            extent=side,
            angle=sample_angle(rng, color),
        )
        for (kind, color), size, position, center, side in zip(
            looks, sizes, positions, centers, sides, strict=True
        )
    )
    seed = int(rng.random() * 2**31)
    return Scene(background=background, items=items, image_size=world.image_size, seed=seed)


def sample_distinct_scene(rng: np.random.Generator, world: World, num_items: int) -> Scene:
    """A scene whose items all differ in (kind, color). Raises ValueError as `sample_scene`."""
    return _sample(rng, world, num_items, num_items)


def sample_equal_scene(rng: np.random.Generator, world: World, num_items: int) -> Scene:
    """A scene whose items are all of one (kind, color). Raises ValueError as `sample_scene`."""
    return _sample(rng, world, num_items, 1)


def _sample(rng: np.random.Generator, world: World, num_items: int, num_different: int) -> Scene:
    for _ in range(_MAX_ATTEMPTS):
        scene = _try_scene(rng, world, num_items, num_different)
        if scene is not None:
            return scene
    raise ValueError(
        f"no scene with {num_items} items fits this world: widen its colors, positions or sizes"
    )


def sample_scene(rng: np.random.Generator, world: World, num_items: int | None = None) -> Scene:
    """Draws a scene of the world, with `num_items` items or a random number of them.

    Items differ in (kind, color) unless the world counts equal ones and the scene is such a count.
    Raises ValueError if `num_items` is not in [1, max_items] or the world leaves no room for them.
    """
    if num_items is None:
        num_items = 1 + int(np.searchsorted(_NUM_ITEMS_CUTS[world.max_items], rng.random()))
    if not 1 <= num_items <= world.max_items:
        raise ValueError(f"num_items must be in [1, {world.max_items}], got {num_items}")
    num_different = num_items
    if num_items > 1 and world.same_kind_counts and rng.random() < _COUNT_SHARE:
        num_different = 1 + int(rng.random() * (num_items - 1))
    return _sample(rng, world, num_items, num_different)
