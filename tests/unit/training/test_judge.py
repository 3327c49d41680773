"""The judge accepts true pictures, also damaged ones, and rejects whatever is wrong in one way."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.training.damage import Picture, blurred, compressed, noisy, untouched
from training.judge import Judge
from training.layout import POSITIONS, place
from training.rendering import render
from training.stickers import (
    COLORS,
    SHAPES,
    SHAPES_WORLD,
    Background,
    Item,
    Scene,
    World,
    pick,
    sample_scene,
    stands_out,
)
from training.verdicts import judge_scene

WIDE_WORLD = replace(SHAPES_WORLD, sizes=("small", "large"), max_items=3, same_kind_counts=True)


@pytest.mark.parametrize("world", [SHAPES_WORLD, WIDE_WORLD], ids=["shapes", "wide"])
@pytest.mark.parametrize(
    ("damage", "least"), [(untouched, 0.995), (noisy, 0.97), (blurred, 0.97), (compressed, 0.97)]
)
def test_true_pictures_are_accepted(
    judge: Judge,
    world: World,
    damage: Callable[[Picture, np.random.Generator], Picture],
    least: float,
) -> None:
    rng = np.random.default_rng(3)
    num_right, num_scenes = 0, 70
    for _ in range(num_scenes):
        scene = sample_scene(rng, world)
        reading = judge.read(damage(render(scene).image, rng))
        num_right += judge_scene(reading, scene).strict
    assert num_right / num_scenes >= least


def with_item(scene: Scene, index: int, item: Item) -> Scene:
    return replace(scene, items=(*scene.items[:index], item, *scene.items[index + 1 :]))


def colors_for(item: Item, background: Background) -> list[str]:
    return [c for c in COLORS if c != item.color and stands_out(item.kind, c, background)]


def wrong_color(scene: Scene, rng: np.random.Generator) -> Scene | None:
    item = scene.items[0]
    colors = colors_for(item, scene.background)
    return with_item(scene, 0, replace(item, color=pick(rng, colors))) if colors else None


def wrong_shape(scene: Scene, rng: np.random.Generator) -> Scene | None:
    item = scene.items[0]
    other = pick(rng, [kind for kind in SHAPES if kind != item.kind])
    return with_item(scene, 0, replace(item, kind=other))


def missing_item(scene: Scene, rng: np.random.Generator) -> Scene | None:
    return replace(scene, items=scene.items[1:])


def extra_item(scene: Scene, rng: np.random.Generator) -> Scene | None:
    colors = colors_for(scene.items[0], scene.background)
    spot = (pick(rng, POSITIONS), "small", 30)
    taken = tuple((item.center, item.extent) for item in scene.items)
    centers = place(rng, (spot,), scene.image_size, taken)
    if centers is None or not colors:
        return None
    item = Item(
        kind=pick(rng, SHAPES),
        color=pick(rng, colors),
        size="small",
        position=spot[0],
        center=centers[0],
        extent=30,
        angle=0.0,
    )
    return replace(scene, items=(*scene.items, item))


def wrong_place(scene: Scene, rng: np.random.Generator) -> Scene | None:
    item = scene.items[0]
    position = pick(rng, [name for name in POSITIONS if name != item.position])
    taken = tuple((other.center, other.extent) for other in scene.items[1:])
    centers = place(rng, ((position, item.size, item.extent),), scene.image_size, taken)
    if centers is None:
        return None
    return with_item(scene, 0, replace(item, position=position, center=centers[0]))


def wrong_size(scene: Scene, rng: np.random.Generator) -> Scene | None:
    return with_item(scene, 0, replace(scene.items[0], size="small", extent=32))


def wrong_background(scene: Scene, rng: np.random.Generator) -> Scene | None:
    color = pick(rng, [name for name in COLORS if name != scene.background.colors[0]])
    background = replace(scene.background, colors=(color,))
    if not all(stands_out(item.kind, item.color, background) for item in scene.items):
        return None
    return replace(scene, background=background)


@pytest.mark.parametrize(
    "change",
    [
        wrong_color,
        wrong_shape,
        missing_item,
        extra_item,
        wrong_place,
        wrong_size,
        wrong_background,
    ],
)
def test_one_fault_is_enough(
    judge: Judge, change: Callable[[Scene, np.random.Generator], Scene | None]
) -> None:
    rng = np.random.default_rng(4)
    num_accepted = num_judged = 0
    while num_judged < 50:
        scene = sample_scene(rng, SHAPES_WORLD)
        shown = change(scene, rng)
        if shown is None:
            continue
        num_judged += 1
        num_accepted += judge_scene(judge.read(render(shown).image), scene).strict
    assert num_accepted == 0
