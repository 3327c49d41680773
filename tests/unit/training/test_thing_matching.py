"""Everyday things are told from each other and from shapes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.training.conftest import scene_of
from tests.unit.training.damage import Picture, compressed, untouched
from training.judge import Judge
from training.rendering import render
from training.stickers import FULL_WORLD, SHAPES, THINGS, sample_scene, stands_out
from training.verdicts import judge_scene

EVERYDAY_WORLD = replace(FULL_WORLD, background_styles=("plain",), scenes=())


@pytest.mark.parametrize("damage", [untouched, compressed])
def test_everyday_things_are_recognised_beside_shapes(
    damage: Callable[[Picture, np.random.Generator], Picture],
) -> None:
    judge = Judge((*SHAPES, *THINGS))
    rng = np.random.default_rng(5)
    num_right, num_scenes = 0, 40
    for _ in range(num_scenes):
        scene = sample_scene(rng, EVERYDAY_WORLD)
        reading = judge.read(damage(render(scene).image, rng))
        num_right += judge_scene(reading, scene).strict
    assert num_right / num_scenes >= 0.97


def test_a_thing_has_its_place_and_size_but_no_color() -> None:
    judge = Judge(THINGS)
    rng = np.random.default_rng(7)
    world = replace(EVERYDAY_WORLD, shapes=())
    for _ in range(10):
        (thing,) = sample_scene(rng, world, 1).items
        scene = scene_of(thing, background="gray")
        if not stands_out(thing.kind, None, scene.background):
            continue
        (found,) = judge.read(render(scene).image).items
        assert (found.kind, found.color) == (thing.kind, None)
        np.testing.assert_allclose(found.center, thing.center, atol=3)
        assert abs(found.extent - thing.extent) <= 4
