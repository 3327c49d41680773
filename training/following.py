"""Prompt following: held-out prompts, any program that paints them, and the judge's verdicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from training.batches import random_generator
from training.captions import caption
from training.judge import Judge
from training.stickers import Scene, World, sample_distinct_scene, sample_scene
from training.verdicts import Verdict, judge_scene, tells_relation

Painter = Callable[[Sequence[str], Sequence[int]], Sequence[NDArray[np.uint8]]]
"""(prompts, noise seeds) -> pictures (H, W, 3), in the same order."""


@dataclass(frozen=True, kw_only=True)
class PromptCase:
    """A scene, a complete caption of it, and the noise seed of the picture to be made."""

    scene: Scene
    prompt: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Category:
    """A kind of prompt: `num_items` items of a world; `equal` ones are a count ("two circles")."""

    name: str
    world: World
    num_items: int
    equal: bool = False


def categories(world: World) -> list[Category]:
    """The kinds of prompts that the world's pictures can be judged by, on plain backgrounds."""
    plain = replace(world, background_styles=("plain",), scenes=())
    found = []
    if plain.shapes:
        shapes = replace(plain, things=())
        found.append(Category(name="one_shape", world=shapes, num_items=1))
        if world.max_items > 1:
            found.append(Category(name="two_shapes", world=shapes, num_items=2))
        if world.same_kind_counts:
            for number, name in ((2, "count_of_two"), (3, "count_of_three")):
                if number <= world.max_items:
                    found.append(Category(name=name, world=shapes, num_items=number, equal=True))
    if plain.things:
        things = replace(plain, shapes=())
        found.append(Category(name="one_thing", world=things, num_items=1))
    return found


def _sample(rng: np.random.Generator, category: Category) -> Scene:
    if not category.equal:
        return sample_distinct_scene(rng, category.world, category.num_items)
    while True:
        scene = sample_scene(rng, category.world, category.num_items)
        if len({(item.kind, item.color) for item in scene.items}) == 1:
            return scene


def held_out_prompts(category: Category, count: int, seed: int) -> list[PromptCase]:
    """Complete captions of scenes of one category.

    Their random stream has a name that no training stage uses, so no run saw their draws.
    """
    cases = []
    for index in range(count):
        rng = random_generator(seed, f"held-out-{category.name}", index)
        scene = _sample(rng, category)
        prompt = caption(scene, rng, complete=True)
        cases.append(PromptCase(scene=scene, prompt=prompt, seed=int(rng.integers(2**31))))
    return cases


def follow_prompts(
    paint: Painter,
    judge: Judge,
    cases: Sequence[PromptCase],
    *,
    batch_size: int = 16,
    on_done: Callable[[int], None] | None = None,
) -> tuple[list[NDArray[np.uint8]], list[Verdict]]:
    """The pictures that `paint` makes of the prompts, and the verdict on each.

    `on_done(number)` is called after each batch with the number of its pictures.
    """
    images: list[NDArray[np.uint8]] = []
    verdicts: list[Verdict] = []
    for start in range(0, len(cases), batch_size):
        batch = cases[start : start + batch_size]
        painted = paint([case.prompt for case in batch], [case.seed for case in batch])
        verdicts += [verdict(judge, *pair) for pair in zip(painted, batch, strict=True)]
        images += painted
        if on_done is not None:
            on_done(len(batch))
    return images, verdicts


def verdict(judge: Judge, image: NDArray[np.uint8], case: PromptCase) -> Verdict:
    """Whether the picture shows the case's scene; relations count where the prompt tells one."""
    relation = len(case.scene.items) == 2 and tells_relation(case.prompt)
    return judge_scene(judge.read(image), case.scene, by_relation=relation)


def rates(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Share of verdicts that are true, by name of the verdict."""
    return {
        field.name: sum(getattr(one, field.name) for one in verdicts) / len(verdicts)
        for field in fields(Verdict)
    }
