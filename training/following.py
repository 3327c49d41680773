"""Prompt following: held-out prompts, any program that paints them, and the judge's verdicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from training.batches import random_generator
from training.captions import caption
from training.judge import Judge
from training.stickers import Scene, World, sample_distinct_scene
from training.verdicts import Verdict, judge_scene, tells_relation

Painter = Callable[[Sequence[str], Sequence[int]], NDArray[np.uint8]]
"""(prompts, noise seeds) -> pictures (B, H, W, 3), in the same order."""


@dataclass(frozen=True, kw_only=True)
class PromptCase:
    """A scene, a complete caption of it, and the noise seed of the picture to be made."""

    scene: Scene
    prompt: str
    seed: int


def held_out_prompts(world: World, num_items: int, count: int, seed: int) -> list[PromptCase]:
    """Complete captions of scenes with `num_items` different items.

    Their random stream has a name that no training stage uses, so no run saw their draws.
    """
    cases = []
    for index in range(count):
        rng = random_generator(seed, f"held-out-prompts-{num_items}", index)
        scene = sample_distinct_scene(rng, world, num_items)
        prompt = caption(scene, rng, complete=True)
        cases.append(PromptCase(scene=scene, prompt=prompt, seed=int(rng.integers(2**31))))
    return cases


def follow_prompts(
    paint: Painter, judge: Judge, cases: Sequence[PromptCase], batch_size: int = 16
) -> tuple[list[NDArray[np.uint8]], list[Verdict]]:
    """The pictures that `paint` makes of the prompts, and the verdict on each."""
    images: list[NDArray[np.uint8]] = []
    for start in range(0, len(cases), batch_size):
        batch = cases[start : start + batch_size]
        images += list(paint([case.prompt for case in batch], [case.seed for case in batch]))
    return images, [verdict(judge, image, case) for image, case in zip(images, cases, strict=True)]


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
