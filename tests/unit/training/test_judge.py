"""The judge accepts true pictures, also damaged ones, and rejects whatever is wrong in one way."""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from training.judge import Judge
from training.layout import POSITIONS, place
from training.rendering import render
from training.segments import UNKNOWN
from training.stickers import (
    COLORS,
    FULL_WORLD,
    SHAPES,
    SHAPES_WORLD,
    THINGS,
    Background,
    Item,
    Scene,
    pick,
    sample_scene,
    stands_out,
)
from training.verdicts import judge_scene, tells_relation

Picture = NDArray[np.uint8]
WIDE_WORLD = replace(SHAPES_WORLD, sizes=("small", "large"), max_items=3, same_kind_counts=True)

EVERYDAY_WORLD = replace(FULL_WORLD, background_styles=("plain",), scenes=())


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(SHAPES)


def untouched(image: Picture, rng: np.random.Generator) -> Picture:
    return image


def noisy(image: Picture, rng: np.random.Generator) -> Picture:
    noise = rng.normal(0, 0.05 * 255, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def blurred(image: Picture, rng: np.random.Generator) -> Picture:
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.5)))


def compressed(image: Picture, rng: np.random.Generator) -> Picture:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("world", [SHAPES_WORLD, WIDE_WORLD], ids=["shapes", "wide"])
@pytest.mark.parametrize(
    ("damage", "least"), [(untouched, 0.995), (noisy, 0.97), (blurred, 0.97), (compressed, 0.97)]
)
def test_true_pictures_are_accepted(
    judge: Judge,
    world: object,
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


def shape(kind: str, color: str, center: tuple[float, float], position: str) -> Item:
    return Item(
        kind=kind,
        color=color,
        size="large",
        position=position,
        center=center,
        extent=56,
        angle=0.0,
    )


def scene_of(*items: Item, background: str = "white") -> Scene:
    ground = Background(style="plain", colors=(background,), scene=None)
    return Scene(background=ground, items=items, seed=0)


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
