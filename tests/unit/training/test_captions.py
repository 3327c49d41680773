"""Captions: closed vocabulary, bounded length, and everything said when asked to be complete."""

import numpy as np
import pytest

from training.captions import MAX_WORDS, caption, vocabulary
from training.edits import sample_edit
from training.nouns import plural
from training.phrases import SIZE_WORDS, with_article
from training.scenes import Background, Item, Scene
from training.stickers import COLORS, FULL_WORLD, SHAPES, SHAPES_WORLD, THINGS, sample_scene

WORLDS = pytest.mark.parametrize("world", [SHAPES_WORLD, FULL_WORLD], ids=["shapes", "full"])
BLUE = Background(style="plain", colors=("blue",), scene=None)


def item(kind, color, position, size="large"):
    return Item(
        kind=kind,
        color=color,
        size=size,
        position=position,
        center=(64.0, 64.0),
        extent=56,
        angle=0.0,
    )


def captions(*items, background=BLUE, num=200):
    scene = Scene(background=background, items=items, seed=0)
    rng = np.random.default_rng(0)
    return {caption(scene, rng, complete=True) for _ in range(num)}


@WORLDS
@pytest.mark.parametrize("complete", [True, False])
def test_captions_are_short_and_of_known_words(world, complete):
    words = set(vocabulary())
    rng = np.random.default_rng(0)
    for _ in range(2000):
        text = caption(sample_scene(rng, world), rng, complete=complete)
        assert set(text.split(" ")) <= words
        assert len(text.split()) <= MAX_WORDS


@WORLDS
def test_instructions_are_short_and_of_known_words(world):
    words = set(vocabulary())
    rng = np.random.default_rng(0)
    for _ in range(2000):
        text = sample_edit(rng, world).instruction
        assert set(text.split(" ")) <= words
        assert len(text.split()) <= MAX_WORDS


def test_the_vocabulary_is_sorted_lower_case_and_holds_every_name():
    words = vocabulary()
    assert list(words) == sorted(set(words))
    assert all(word.isalpha() and word.islower() for word in words)
    assert {*SHAPES, *THINGS, *COLORS, *map(plural, (*SHAPES, *THINGS))} <= set(words)


@WORLDS
def test_a_complete_caption_names_everything(world):
    rng = np.random.default_rng(0)
    for _ in range(2000):
        scene = sample_scene(rng, world)
        text = caption(scene, rng, complete=True)
        said = text.split()
        background = scene.background
        assert (background.scene or background.colors[0]) in said
        assert set(() if background.scene else background.colors) <= set(said)
        for one in scene.items:
            look = [(other.kind, other.color) for other in scene.items]
            number = look.count((one.kind, one.color))
            assert (one.kind if number == 1 else plural(one.kind)) in said
            assert number == 1 or {2: "two", 3: "three"}[number] in said
            assert one.color is None or one.color in said
            assert one.size == "large" or set(SIZE_WORDS["small"]) & set(said)


def test_an_incomplete_caption_sometimes_leaves_out_background_or_place():
    rng = np.random.default_rng(0)
    scene = Scene(background=BLUE, items=(item("circle", "red", "top left"),), seed=0)
    texts = [caption(scene, rng) for _ in range(400)]
    assert 40 < sum("blue" not in text for text in texts) < 160
    assert 40 < sum("top left" not in text for text in texts) < 160


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.7, 0.6, 0.8), (1.0, 1, 1)])
def test_so_many_captions_leave_places_out(share, low, high):
    scene = Scene(background=BLUE, items=(item("star", "red", "center"),), seed=0)
    rng = np.random.default_rng(0)
    texts = [caption(scene, rng, omit_places=share) for _ in range(400)]
    without = sum(not {"center", "middle"} & set(text.split()) for text in texts) / len(texts)
    assert low <= without <= high


def test_one_item_names_its_place():
    texts = captions(item("star", "green", "bottom right"))
    assert len(texts) > 10
    assert all("bottom right" in text for text in texts)
    assert "a green star at the bottom right on a blue background" in texts


def test_two_items_side_by_side_are_told_by_relation_or_by_places():
    texts = captions(item("circle", "red", "left"), item("star", "white", "right"))
    assert "a red circle to the left of a white star on a blue background" in texts
    assert "a white star right of a red circle on a blue background" in texts
    assert not any("red circle to the right of" in text for text in texts)
    assert not any("white star to the left of" in text for text in texts)
    assert not any("above" in text or "below" in text for text in texts)


def test_a_diagonal_is_told_by_two_places():
    texts = captions(item("circle", "red", "top right"), item("cat", None, "bottom left"))
    assert all("top right" in text and "bottom left" in text for text in texts)


@pytest.mark.parametrize(
    ("positions", "said"),
    [
        (("left", "right"), "two red circles side by side"),
        (("bottom", "top"), "two red circles one above the other"),
        (("left", "right", "center"), "three red circles in a row"),
        (("top", "center", "bottom"), "three red circles in a column"),
    ],
)
def test_equal_items_are_counted_and_their_formation_named(positions, said):
    texts = captions(*(item("circle", "red", position) for position in positions))
    assert f"{said} on a blue background" in texts


def test_two_equal_items_relate_to_the_third():
    texts = captions(
        item("cat", None, "top right"),
        item("cat", None, "top left"),
        item("star", "green", "bottom"),
    )
    assert "two cats above a green star on a blue background" in texts


def test_many_facts_are_said_briefly():
    striped = Background(style="stripes", colors=("black", "white"), scene=None)
    texts = captions(
        item("circle", "red", "top left", size="small"),
        item("circle", "red", "top right", size="small"),
        item("circle", "red", "bottom left", size="small"),
        background=striped,
    )
    assert all(len(text.split()) <= MAX_WORDS for text in texts)
    assert all("three" in text and "black and white striped" in text for text in texts)


def test_an_empty_scene_is_its_background():
    assert captions() == {"blue background", "plain blue background"}


@pytest.mark.parametrize(
    ("phrase", "said"),
    [
        ("orange star", "an orange star"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("owl", "an owl"),
        ("red owl", "a red owl"),
    ],
)
def test_articles(phrase, said):
    assert with_article(phrase) == said
