"""Sampling of scenes: what a world allows, what a person can tell apart, what a seed decides."""

import dataclasses
import json
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from training.layout import POSITIONS, anchor, apart
from training.palette import COLORS, colors_contrast
from training.stickers import (
    FULL_WORLD,
    SHAPES,
    SHAPES_WORLD,
    THINGS,
    World,
    drawable,
    sample_scene,
    stands_out,
)

WORLDS = pytest.mark.parametrize("world", [SHAPES_WORLD, FULL_WORLD], ids=["shapes", "full"])
NUM_SCENES = 600


def scenes(world: World, num: int = NUM_SCENES, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, world) for _ in range(num)]


@WORLDS
def test_the_seed_decides_the_scenes(world):
    assert scenes(world, 50, seed=3) == scenes(world, 50, seed=3)
    assert scenes(world, 50, seed=3) != scenes(world, 50, seed=4)


@WORLDS
def test_scenes_hold_only_what_the_world_allows(world):
    for scene in scenes(world):
        assert 1 <= len(scene.items) <= world.max_items
        assert scene.background.style in world.background_styles
        assert set(scene.background.colors) <= set(world.colors)
        for item in scene.items:
            assert item.kind in (world.shapes if item.color else world.things)
            assert item.color is None or item.color in world.colors
            assert item.size in world.sizes
            assert item.position in world.positions


def test_the_full_world_shows_everything_it_names():
    shown = scenes(FULL_WORLD, 4000)
    assert {item.kind for scene in shown for item in scene.items} == {*SHAPES, *THINGS}
    assert {item.position for scene in shown for item in scene.items} == set(POSITIONS)
    assert {scene.background.style for scene in shown} == set(FULL_WORLD.background_styles)
    assert {scene.background.scene for scene in shown} == {*FULL_WORLD.scenes, None}
    assert {len(scene.items) for scene in shown} == {1, 2, 3}


@WORLDS
def test_boxes_of_items_are_apart_and_inside_the_image(world):
    for scene in scenes(world):
        for a, b in combinations(scene.items, 2):
            assert apart(a.center, a.extent, b.center, b.extent)
        for item in scene.items:
            assert min(item.center) >= item.extent / 2
            assert max(item.center) <= scene.image_size - item.extent / 2


@WORLDS
def test_items_stand_nearest_to_the_position_they_name(world):
    for scene in scenes(world):
        for item in scene.items:
            distance = {
                position: np.hypot(*np.subtract(item.center, anchor(position, item.size, 128)))
                for position in POSITIONS
            }
            assert min(distance, key=distance.get) == item.position


@WORLDS
def test_items_stand_out_from_every_colour_of_the_background(world):
    for scene in scenes(world):
        for item in scene.items:
            assert stands_out(item.kind, item.color, scene.background)
            if item.color is not None:
                assert all(colors_contrast(item.color, c) for c in scene.background.colors)


def test_a_colour_never_contrasts_with_itself_and_contrast_is_mutual():
    for a in COLORS:
        assert not colors_contrast(a, a)
        assert sum(colors_contrast(a, b) for b in COLORS) >= 4
        assert all(colors_contrast(a, b) == colors_contrast(b, a) for b in COLORS)


def test_equal_items_appear_only_where_the_world_counts():
    def num_counts(world):
        return sum(
            len({(item.kind, item.color) for item in scene.items}) < len(scene.items)
            for scene in scenes(world)
        )

    assert num_counts(SHAPES_WORLD) == 0
    assert num_counts(dataclasses.replace(FULL_WORLD, same_kind_counts=False)) == 0
    assert num_counts(FULL_WORLD) > NUM_SCENES // 20


@WORLDS
def test_the_number_of_items_can_be_asked_for(world):
    rng = np.random.default_rng(0)
    for num_items in range(1, world.max_items + 1):
        assert len(sample_scene(rng, world, num_items).items) == num_items
    for num_items in (0, world.max_items + 1):
        with pytest.raises(ValueError, match="num_items"):
            sample_scene(rng, world, num_items)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"shapes": ("circle", "blob")}, "shapes"),
        ({"things": ("cat", "cat")}, "things"),
        ({"colors": ()}, "colors"),
        ({"colors": ("red",)}, "colors"),
        ({"positions": ("middle",)}, "positions"),
        ({"max_items": 4}, "max_items"),
        ({"shapes": (), "things": ()}, "shapes and things"),
        ({"scenes": ()}, "scenes"),
        ({"edit_kinds": ("recolor",)}, "edit_kinds"),
        ({"image_size": 100}, "image_size"),
    ],
)
def test_a_world_that_cannot_be_drawn_is_refused(changes, field):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(FULL_WORLD, **changes)


def test_a_world_without_room_says_so():
    world = dataclasses.replace(SHAPES_WORLD, positions=("center",))
    with pytest.raises(ValueError, match="2 items"):
        sample_scene(np.random.default_rng(0), world, 2)


def test_drawable_is_json_and_names_what_a_bundle_can_draw():
    summary = json.loads(json.dumps(drawable(FULL_WORLD)))
    assert summary["things"] == list(THINGS)
    assert summary["max_items"] == 3
    assert drawable(SHAPES_WORLD)["things"] == []


def test_the_data_set_needs_no_torch():
    modules = "stickers, rendering, captions, edits"
    code = f"import sys; from training import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
