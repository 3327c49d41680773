"""What the judge makes of single items, specks, spots, blobs, and where they are."""

import numpy as np
import pytest

from tests.unit.training.conftest import scene_of, shape
from training.judge import Judge
from training.rendering import render
from training.segments import UNKNOWN
from training.stickers import COLORS, SHAPES_WORLD, sample_scene
from training.verdicts import judge_scene, tells_relation


@pytest.mark.parametrize("color", ["blue", "red"])
def test_touching_items_are_parted(judge: Judge, color: str) -> None:
    scene = scene_of(
        shape("circle", "red", (36, 64), "left"), shape("circle", color, (88, 64), "right")
    )
    reading = judge.read(render(scene).image)
    looks = sorted((item.kind, item.color) for item in reading.items)
    assert looks == sorted([("circle", "red"), ("circle", color)])
    assert judge_scene(reading, scene).strict


@pytest.mark.parametrize(("side", "num_items"), [(3, 1), (12, 2)])
def test_only_large_specks_count(judge: Judge, side: int, num_items: int) -> None:
    scene = scene_of(shape("heart", "green", (64, 64), "center"))
    image = render(scene).image.copy()
    image[4 : 4 + side, 100 : 100 + side] = COLORS["red"]
    reading = judge.read(image)
    assert len(reading.items) == num_items
    assert judge_scene(reading, scene).strict == (num_items == 1)


def test_a_spot_inside_an_item_makes_it_wrong(judge: Judge) -> None:
    scene = scene_of(shape("circle", "green", (64, 64), "center"))
    image = render(scene).image.copy()
    image[58:70, 58:70] = COLORS["red"]
    assert not judge_scene(judge.read(image), scene).strict


def test_a_blob_is_unknown(judge: Judge) -> None:
    image = np.full((128, 128, 3), COLORS["white"], dtype=np.uint8)
    y, x = np.mgrid[:128, :128]
    image[np.hypot((x - 64) / 50, (y - 64) / 16) <= 1] = COLORS["blue"]
    (item,) = judge.read(image).items
    assert (item.kind, item.color) == (UNKNOWN, "blue")


def test_an_empty_picture_is_its_background(judge: Judge) -> None:
    reading = judge.read(render(scene_of(background="brown")).image)
    assert (reading.background, reading.items) == ("brown", ())
    assert judge_scene(reading, scene_of(background="brown")).strict


def test_a_background_between_colors_has_no_name(judge: Judge) -> None:
    image = np.full((128, 128, 3), (0, 128, 128), dtype=np.uint8)
    assert judge.read(image).background == UNKNOWN


def test_centers_and_boxes_are_those_of_the_scene(judge: Judge) -> None:
    rng = np.random.default_rng(6)
    for _ in range(10):
        scene = sample_scene(rng, SHAPES_WORLD, 1)
        rendering = render(scene)
        (item,) = judge.read(rendering.image).items
        np.testing.assert_allclose(item.center, scene.items[0].center, atol=1.5)
        np.testing.assert_allclose(item.box, rendering.boxes[0], atol=1)
        assert abs(item.extent - scene.items[0].extent) <= 2


def test_loose_asks_only_for_presence(judge: Judge) -> None:
    asked = scene_of(shape("star", "blue", (64, 64), "center"))
    shown = scene_of(
        shape("star", "blue", (32, 32), "top left"), shape("ring", "red", (96, 96), "bottom right")
    )
    verdict = judge_scene(judge.read(render(shown).image), asked)
    assert (verdict.loose, verdict.color, verdict.background) == (True, True, True)
    assert (verdict.place, verdict.strict) == (False, False)


def test_a_relation_may_hold_away_from_the_anchors(judge: Judge) -> None:
    asked = scene_of(
        shape("star", "blue", (32, 64), "left"), shape("ring", "red", (96, 64), "right")
    )
    shown = scene_of(
        shape("star", "blue", (30, 44), "left"), shape("ring", "red", (98, 44), "right")
    )
    reading = judge.read(render(shown).image)
    assert judge_scene(reading, asked, by_relation=True).strict
    assert not judge_scene(reading, asked).strict
    swapped = scene_of(
        shape("ring", "red", (32, 64), "left"), shape("star", "blue", (96, 64), "right")
    )
    assert not judge_scene(reading, swapped, by_relation=True).strict


def test_relations_are_recognised_in_words() -> None:
    assert tells_relation("a red star to the left of a blue ring on a white background")
    assert not tells_relation("a red star on the left and a blue ring on the right")


def test_other_sizes_are_refused(judge: Judge) -> None:
    with pytest.raises(ValueError, match=r"\(64, 64, 3\)"):
        judge.read(np.zeros((64, 64, 3), dtype=np.uint8))
