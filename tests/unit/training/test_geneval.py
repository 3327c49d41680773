"""GenEval's categories: true pictures are right, and each category sees the fault it is about."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.training.conftest import scene_of, shape
from training.captions import vocabulary
from training.following import PromptCase
from training.geneval import CATEGORIES, categories, geneval_prompts, relations, shows
from training.judge import FoundItem, Judge
from training.nouns import SHAPES, THINGS
from training.rendering import render
from training.stickers import COLORS, FULL_WORLD, SHAPES_WORLD, Scene, pick, stands_out

WIDE_WORLD = replace(SHAPES_WORLD, sizes=("small", "large"), max_items=3, same_kind_counts=True)
Fault = Callable[[Scene, np.random.Generator], Scene | None]


def share_right(judge: Judge, category: str, cases: list[PromptCase]) -> float:
    readings = [judge.read(render(case.scene).image) for case in cases]
    right = [
        shows(category, reading, case.scene) for reading, case in zip(readings, cases, strict=True)
    ]
    return sum(right) / len(right)


def test_the_world_decides_on_categories() -> None:
    assert categories(WIDE_WORLD) == CATEGORIES
    assert categories(FULL_WORLD) == CATEGORIES
    assert categories(SHAPES_WORLD) == tuple(name for name in CATEGORIES if name != "counting")
    assert categories(replace(WIDE_WORLD, max_items=1)) == ("single_object", "colors")
    things = replace(FULL_WORLD, shapes=())
    assert categories(things) == ("single_object", "two_objects", "counting", "position")
    diagonal = replace(WIDE_WORLD, positions=("top left", "bottom right"))
    assert categories(diagonal) == (
        "single_object",
        "two_objects",
        "colors",
        "color_attribution",
    )
    with pytest.raises(ValueError, match="same_kind_counts"):
        geneval_prompts("counting", SHAPES_WORLD, 1, seed=0)


@pytest.mark.parametrize("category", CATEGORIES)
def test_true_pictures_are_right(judge: Judge, category: str) -> None:
    cases = geneval_prompts(category, WIDE_WORLD, 20, seed=1)
    assert share_right(judge, category, cases) == 1.0


@pytest.mark.parametrize("category", CATEGORIES)
def test_true_pictures_of_everyday_things_are_right(category: str) -> None:
    cases = geneval_prompts(category, FULL_WORLD, 8, seed=1)
    assert share_right(Judge((*SHAPES, *THINGS)), category, cases) == 1.0


@pytest.mark.parametrize("world", [WIDE_WORLD, FULL_WORLD], ids=["wide", "full"])
@pytest.mark.parametrize("category", CATEGORIES)
def test_prompts_are_of_known_words_and_name_the_background(category: str, world) -> None:
    words = set(vocabulary())
    for case in geneval_prompts(category, world, 50, seed=2):
        assert set(case.prompt.split()) <= words
        assert f"{case.scene.background.colors[0]} background" in case.prompt
        assert not {"large", "big", "small", "center", "corner"} & set(case.prompt.split())
    small = replace(world, sizes=("small",))
    assert all("small" in case.prompt for case in geneval_prompts(category, small, 5, seed=2))


def test_prompts_follow_from_their_seed_alone() -> None:
    first = geneval_prompts("position", WIDE_WORLD, 6, seed=3)
    assert first == geneval_prompts("position", WIDE_WORLD, 9, seed=3)[:6]
    assert first != geneval_prompts("position", WIDE_WORLD, 6, seed=4)


def test_pairs_differ_in_kind_and_counts_reach_three() -> None:
    for category in ("two_objects", "position", "color_attribution"):
        for case in geneval_prompts(category, WIDE_WORLD, 60, seed=5):
            assert len({item.kind for item in case.scene.items}) == 2
    counts = {len(c.scene.items) for c in geneval_prompts("counting", WIDE_WORLD, 30, seed=5)}
    assert counts == {2, 3}


def other_color(scene: Scene, rng: np.random.Generator) -> Scene | None:
    first, *rest = scene.items
    taken = {item.color for item in scene.items}
    free = [c for c in COLORS if c not in taken and stands_out(first.kind, c, scene.background)]
    return replace(scene, items=(replace(first, color=pick(rng, free)), *rest)) if free else None


def other_kind(scene: Scene, rng: np.random.Generator) -> Scene | None:
    first, *rest = scene.items
    taken = {item.kind for item in scene.items}
    kind = pick(rng, [kind for kind in SHAPES if kind not in taken])
    return replace(scene, items=(replace(first, kind=kind), *rest))


def one_less(scene: Scene, rng: np.random.Generator) -> Scene | None:
    return replace(scene, items=scene.items[1:])


def one_more(scene: Scene, rng: np.random.Generator) -> Scene | None:
    if len(scene.items) == 3:
        return None
    # Beside a pair in a row or a column there is room for a small one.
    middle = scene.image_size / 2
    row = abs(scene.items[0].center[1] - scene.items[1].center[1]) < 20
    center = (middle, 18.0) if row else (18.0, middle)
    small = replace(scene.items[0], size="small", extent=28, center=center)
    return replace(scene, items=(*scene.items, small))


def swapped_colors(scene: Scene, rng: np.random.Generator) -> Scene | None:
    first, second = scene.items
    swapped = (replace(first, color=second.color), replace(second, color=first.color))
    return replace(scene, items=swapped)


def swapped_places(scene: Scene, rng: np.random.Generator) -> Scene | None:
    first, second = scene.items
    return replace(
        scene,
        items=(replace(first, center=second.center), replace(second, center=first.center)),
    )


FAULTS: list[tuple[str, Fault]] = [
    ("single_object", other_kind),
    ("single_object", one_less),
    ("two_objects", other_kind),
    ("two_objects", one_less),
    ("counting", other_kind),
    ("counting", one_less),
    ("counting", one_more),
    ("colors", other_color),
    ("colors", other_kind),
    ("position", swapped_places),
    ("position", other_kind),
    ("position", one_less),
    ("color_attribution", swapped_colors),
    ("color_attribution", other_color),
    ("color_attribution", one_less),
]


@pytest.mark.parametrize(("category", "fault"), FAULTS)
def test_one_fault_makes_a_picture_wrong(judge: Judge, category: str, fault: Fault) -> None:
    rng = np.random.default_rng(6)
    num_judged = 0
    for case in geneval_prompts(category, WIDE_WORLD, 20, seed=6):
        shown = fault(case.scene, rng)
        if shown is not None:
            num_judged += 1
            assert not shows(category, judge.read(render(shown).image), case.scene), case.prompt
    assert num_judged >= 7


@pytest.mark.parametrize(
    ("category", "fault"),
    [
        ("single_object", other_color),
        ("two_objects", swapped_colors),
        ("two_objects", swapped_places),
        ("color_attribution", swapped_places),
        ("position", swapped_colors),
    ],
)
def test_what_a_category_does_not_ask_for_is_free(
    judge: Judge, category: str, fault: Fault
) -> None:
    rng = np.random.default_rng(7)
    for case in geneval_prompts(category, WIDE_WORLD, 8, seed=7):
        shown = fault(case.scene, rng)
        if shown is not None:
            assert shows(category, judge.read(render(shown).image), case.scene), case.prompt


def test_another_item_does_not_lend_its_color(judge: Judge) -> None:
    asked = scene_of(shape("circle", "red", (64, 64), "center"))
    shown = scene_of(shape("circle", "blue", (32, 64), "left"))
    picture = render(shown).image.copy()
    picture[40:88, 84:120] = COLORS["red"]  # a red thing that is no circle
    reading = judge.read(picture)
    assert len(reading.items) == 2
    assert shows("single_object", reading, asked)
    assert not shows("colors", reading, asked)


def found(box: tuple[int, int, int, int]) -> FoundItem:
    return FoundItem(
        kind="circle",
        color="red",
        center=((box[0] + box[2]) / 2, (box[1] + box[3]) / 2),
        box=box,
        extent=20,
        score=1.0,
        flatness=1.0,
    )


def test_relations_are_those_of_the_boxes() -> None:
    middle = found((54, 54, 74, 74))
    assert relations(found((4, 54, 24, 74)), middle) == {"to the left of"}
    assert relations(found((104, 50, 124, 70)), middle) == {"to the right of"}
    assert relations(found((50, 4, 70, 24)), middle) == {"above"}
    assert relations(found((54, 104, 74, 124)), middle) == {"below"}
    assert relations(found((14, 14, 34, 34)), middle) == {"to the left of", "above"}
    assert relations(found((51, 54, 71, 74)), middle) == set()  # within the slack of 4 pixels
    assert relations(middle, middle) == set()
