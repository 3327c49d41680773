"""Edit triples: one change, said without doubt, and no other pixel touched."""

import dataclasses

import numpy as np
import pytest

from training.edits import EditTriple, sample_edit
from training.layout import apart
from training.rendering import render
from training.scenes import EDIT_KINDS, Item, Scene
from training.stickers import FULL_WORLD, SHAPES_WORLD, THINGS, World, stands_out

WORLDS = pytest.mark.parametrize("world", [SHAPES_WORLD, FULL_WORLD], ids=["shapes", "full"])


def triples(world: World, num: int = 400) -> list[EditTriple]:
    rng = np.random.default_rng(0)
    return [sample_edit(rng, world) for _ in range(num)]


def changed_items(triple: EditTriple) -> tuple[list[Item], list[Item]]:
    """Items that only the source has, and items that only the target has."""
    source, target = triple.source.items, triple.target.items
    return [i for i in source if i not in target], [i for i in target if i not in source]


def box_area(scene: Scene, items: list[Item]) -> np.ndarray:
    area = np.zeros((scene.image_size, scene.image_size), dtype=bool)
    for item in items:
        x0, y0 = (round(c - item.extent / 2) for c in item.center)
        area[y0 : y0 + int(item.extent), x0 : x0 + int(item.extent)] = True
    return area


def inner(mask: np.ndarray) -> np.ndarray:
    """The mask without the pixels whose neighbours are outside it: where an item is opaque."""
    padded = np.pad(mask, 2)
    size = mask.shape[0]
    shifts = [padded[y : y + size, x : x + size] for y in range(5) for x in range(5)]
    return np.logical_and.reduce(shifts)


@WORLDS
def test_every_kind_of_the_world_is_drawn(world):
    assert {triple.kind for triple in triples(world)} == set(world.edit_kinds)


def test_the_seed_decides_the_triples():
    assert triples(FULL_WORLD, 40) == triples(FULL_WORLD, 40)


@WORLDS
def test_only_the_pixels_of_the_change_differ(world):
    for triple in triples(world):
        before, after = render(triple.source).image, render(triple.target).image
        differs = (before != after).any(axis=2)
        assert differs.any()
        if triple.kind == "background":
            assert triple.source.items == triple.target.items
            opaque = inner(render(triple.source).masks.any(axis=0))
            # The rims of things are translucent further in than those of shapes.
            if all(item.color is not None for item in triple.source.items):
                assert not (differs & opaque).any()
            assert differs[:2].any()
        else:
            assert triple.source.background == triple.target.background
            gone, new = changed_items(triple)
            assert not (differs & ~box_area(triple.source, gone + new)).any()


@WORLDS
def test_the_target_obeys_the_rules_of_scenes(world):
    for triple in triples(world):
        for scene in (triple.source, triple.target):
            looks = [(item.kind, item.color) for item in scene.items]
            assert len(set(looks)) == len(looks) <= world.max_items
            for n, item in enumerate(scene.items):
                assert stands_out(item.kind, item.color, scene.background)
                for other in scene.items[:n]:
                    assert apart(item.center, item.extent, other.center, other.extent)


@WORLDS
def test_the_instruction_means_one_item_of_the_source(world):
    for triple in triples(world):
        text = f" {triple.instruction} "
        meant = [
            item
            for item in triple.source.items
            if f" the {item.kind} " in text or f" the {item.color} {item.kind} " in text
        ]
        for item in meant:
            same_kind = [other for other in triple.source.items if other.kind == item.kind]
            assert len(same_kind) == 1 or item.color is None or item.color in text
        if triple.kind in ("recolour", "replace", "remove"):
            assert meant == changed_items(triple)[0]
        elif triple.kind in ("move", "resize"):
            assert len(meant) == 1
            assert meant == changed_items(triple)[0]


@WORLDS
def test_instructions_say_what_the_target_shows(world):
    for triple in triples(world):
        words = triple.instruction.split()
        gone, new = changed_items(triple)
        if triple.kind == "background":
            background = triple.target.background
            assert (background.scene or background.colors[0]) in words
            assert background.colors[0] != triple.source.background.colors[0]
        elif triple.kind == "recolour":
            assert words[-1] == new[0].color
            assert dataclasses.replace(gone[0], color=new[0].color) == new[0]
        elif triple.kind == "replace":
            assert new[0].kind in words
            assert new[0].kind in THINGS or new[0].color in words
            assert (new[0].center, new[0].extent) == (gone[0].center, gone[0].extent)
        elif triple.kind == "add":
            assert new[0].kind in words
            assert not gone
        elif triple.kind == "remove":
            assert not new
        elif triple.kind == "resize":
            smaller = new[0].extent < gone[0].extent
            assert ("smaller" in words) == smaller
            assert new[0].center == gone[0].center
        elif triple.kind == "move":
            assert gone[0].position != new[0].position
            place = new[0].position.replace("center", "")
            assert place in triple.instruction


def test_an_added_item_is_given_a_place():
    places = ("left", "right", "top", "bottom", "center", "middle", "above", "below")
    synonyms = ("over", "under")
    for triple in triples(FULL_WORLD, 1200):
        if triple.kind == "add":
            assert set(triple.instruction.split()) & {*places, *synonyms}


@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_a_world_may_offer_one_kind_alone(kind):
    world = dataclasses.replace(FULL_WORLD, edit_kinds=(kind,), max_items=1)
    assert {triple.kind for triple in triples(world, 20)} == {kind}


def test_edits_that_a_world_cannot_show_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="edit_kinds is empty"):
        sample_edit(rng, dataclasses.replace(SHAPES_WORLD, edit_kinds=()))
    things_only = dataclasses.replace(FULL_WORLD, shapes=(), edit_kinds=("recolour",))
    with pytest.raises(ValueError, match="recolour"):
        sample_edit(rng, things_only)
