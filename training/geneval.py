"""Prompt accuracy in GenEval's six categories, on stickers.

A prompt says what its category asks for, and besides only what a sticker's picture cannot do
without: the background, as prompts that leave it out fit pictures of any background; the colour of
a shape, as no caption in training names a shape without; "small" in a world without large items.
Places are left free outside `position`. Only what the category asks for is judged: other items,
other places and the background do not count, and neither does a colour outside `colors` and
`color_attribution`. In a world of shapes the prompts of `two_objects` and `color_attribution` are
therefore alike; they differ in what counts. The strict verdicts of `verdicts.py` stand beside.

Source: GenEval (arXiv 2310.11513), prompts/create_prompts.py and evaluation/evaluate_images.py.
Deviations: this repository's judge in place of detector and CLIP, counts up to the world's largest.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np

from training.batches import random_generator
from training.following import PromptCase
from training.judge import FoundItem, Reading
from training.nouns import plural
from training.phrases import (
    NUMBER_WORDS,
    RELATIONS,
    SIZE_WORDS,
    on_background,
    relation_phrase,
    with_article,
)
from training.scenes import Item, Scene, World
from training.stickers import pick, sample_distinct_scene, sample_equal_scene

CATEGORIES = (
    "single_object",
    "two_objects",
    "counting",
    "colors",
    "position",
    "color_attribution",
)
"""In GenEval's order."""

_MAX_ATTEMPTS = 200
# A tenth of both boxes' sides is no offset; a relation holds within 60 degrees of its direction.
_SLACK, _MIN_SHARE = 0.1, 0.5


def categories(world: World) -> tuple[str, ...]:
    """Those of the six that the world's pictures can be asked for."""
    return tuple(name for name in CATEGORIES if _fits(name, world))


def _fits(category: str, world: World) -> bool:
    with suppress(ValueError):
        _sample(random_generator(0, f"geneval-trial-{category}", 0), category, _judged(world))
        return True
    return False


def geneval_prompts(category: str, world: World, count: int, seed: int) -> list[PromptCase]:
    """Held-out prompts of one category; no training stage uses their random stream.

    Raises:
        ValueError: the world has no such pictures.
    """
    world, cases = _judged(world), []
    for index in range(count):
        rng = random_generator(seed, f"geneval-{category}", index)
        scene = _sample(rng, category, world)
        prompt = _prompt(rng, category, scene)
        cases.append(PromptCase(scene=scene, prompt=prompt, seed=int(rng.integers(2**31))))
    return cases


def _judged(world: World) -> World:
    """The world with plain backgrounds, which the judge reads, and one size if it has a large."""
    sizes = ("large",) if "large" in world.sizes else world.sizes
    return replace(world, background_styles=("plain",), scenes=(), sizes=sizes)


def _sample(rng: np.random.Generator, category: str, world: World) -> Scene:
    if category == "counting":
        return sample_equal_scene(rng, world, pick(rng, _counts(world)))
    if category in ("colors", "color_attribution"):
        if not world.shapes:
            raise ValueError("the world has no shapes, and things have their own colors")
        world = replace(world, things=())
    num_items = 1 if category in ("single_object", "colors") else 2
    if num_items > world.max_items:
        raise ValueError(f"max_items {world.max_items}: the world has no pairs")
    for _ in range(_MAX_ATTEMPTS):
        scene = sample_distinct_scene(rng, world, num_items)
        if _suits(category, scene.items):
            return scene
    raise ValueError(f"no scene of the category {category} fits this world")


def _counts(world: World) -> tuple[int, ...]:
    """Numbers of equal items that the world has room for."""
    if not world.same_kind_counts:
        raise ValueError("same_kind_counts is false: the world has no counts")
    found = []
    for number in range(2, world.max_items + 1):
        with suppress(ValueError):
            sample_equal_scene(random_generator(0, "geneval-counts", number), world, number)
            found.append(number)
    if not found:
        raise ValueError("no count fits this world")
    return tuple(found)


def _suits(category: str, items: tuple[Item, ...]) -> bool:
    """Two items differ in kind; also in colour or in place, where the category is about that."""
    if len(items) == 1:
        return True
    first, second = items
    return (
        first.kind != second.kind
        and (category != "color_attribution" or first.color != second.color)
        and (category != "position" or (first.position, second.position) in RELATIONS)
    )


def _noun(item: Item, number: int = 1) -> str:
    words = [SIZE_WORDS["small"][0]] if item.size == "small" else []
    words += [item.color] if item.color is not None else []
    return " ".join([*words, plural(item.kind) if number > 1 else item.kind])


def _prompt(rng: np.random.Generator, category: str, scene: Scene) -> str:
    items = scene.items
    phrases = [with_article(_noun(item)) for item in items]
    if category == "counting":
        said = f"{NUMBER_WORDS[len(items)]} {_noun(items[0], len(items))}"
    elif category == "position":
        said = f"{phrases[0]} {relation_phrase(rng, _relation(scene))} {phrases[1]}"
    else:
        said = " and ".join(phrases)
    return f"{said} {on_background(rng, scene.background)}"


def _relation(scene: Scene) -> str:
    return RELATIONS[scene.items[0].position, scene.items[1].position]


def shows(category: str, reading: Reading, scene: Scene) -> bool:
    """Whether a picture, as the judge reads it, has what the category asks of the scene."""
    return _RULES[category](reading, scene)


def relations(first: FoundItem, second: FoundItem) -> set[str]:
    """How the first item stands to the second: none, one or two values of RELATIONS.

    The offset of the boxes' middles, less a tenth of their widths and heights together, over its
    own length: beyond one half along an axis, the relation holds.
    """
    boxes = np.array([first.box, second.box], dtype=np.float64).reshape(2, 2, 2)
    offset = boxes[0].mean(axis=0) - boxes[1].mean(axis=0)
    slack = _SLACK * (boxes[:, 1] - boxes[:, 0]).sum(axis=0)
    rest = np.maximum(np.abs(offset) - slack, 0) * np.sign(offset)
    x, y = rest / max(float(np.linalg.norm(offset)), 1e-9)
    held = {
        "to the left of": x < -_MIN_SHARE,
        "to the right of": x > _MIN_SHARE,
        "above": y < -_MIN_SHARE,
        "below": y > _MIN_SHARE,
    }
    return {name for name, holds in held.items() if holds}


def _best(reading: Reading, kind: str) -> FoundItem | None:
    """Of the items of a kind, the one that fits its drawing best, as a detector is surest of it."""
    found = [item for item in reading.items if item.kind == kind]
    return max(found, key=lambda item: item.score, default=None)


def _pairs(reading: Reading, scene: Scene) -> Iterator[tuple[FoundItem | None, Item]]:
    for item in scene.items:
        yield _best(reading, item.kind), item


def _all_there(reading: Reading, scene: Scene) -> bool:
    return all(found is not None for found, _ in _pairs(reading, scene))


def _all_colored(reading: Reading, scene: Scene) -> bool:
    return all(
        found is not None and found.color == item.color for found, item in _pairs(reading, scene)
    )


def _counted(reading: Reading, scene: Scene) -> bool:
    kind = scene.items[0].kind
    return sum(item.kind == kind for item in reading.items) == len(scene.items)


def _placed(reading: Reading, scene: Scene) -> bool:
    first, second = (found for found, _ in _pairs(reading, scene))
    if first is None or second is None:
        return False
    return _relation(scene) in relations(first, second)


_RULES: dict[str, Callable[[Reading, Scene], bool]] = {
    "single_object": _all_there,
    "two_objects": _all_there,
    "counting": _counted,
    "colors": _all_colored,
    "position": _placed,
    "color_attribution": _all_colored,
}
