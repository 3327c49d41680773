"""Edit accuracy: held-out edits of one kind, what they should change and what they should keep."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from training.batches import random_generator, to_tensor
from training.edits import EditTriple, sample_edit
from training.judge import FoundItem, Judge, Reading
from training.metrics import masked_psnr
from training.painting import BundlePainter, Picture
from training.rendering import render
from training.stickers import Item, World
from training.verdicts import item_size, judge_scene, nearest_position, tells_relation

Look = tuple[str | None, ...]


@dataclass(frozen=True, kw_only=True)
class EditCase:
    """An edit with the true pictures before and after it, and the noise seed."""

    edit: EditTriple
    source: Picture
    target: Picture
    seed: int

    @property
    def unchanged(self) -> np.ndarray:
        """(H, W) bool: where source and target are the same."""
        return np.asarray((self.source == self.target).all(axis=-1))


@dataclass(frozen=True, kw_only=True)
class EditOutcome:
    """target: strictly the scene after the edit; change: what should be new is there and what
    should be gone is gone; the rest in dB, against the source, where nothing should change: the
    edited picture, and the source after encoding and decoding alone.
    """

    target: bool
    change: bool
    unchanged_psnr_db: float
    round_trip_psnr_db: float


def held_out_edits(world: World, kind: str, count: int, seed: int) -> list[EditCase]:
    """Edits of one kind on plain backgrounds; no training stage uses their random stream."""
    world = replace(world, edit_kinds=(kind,), background_styles=("plain",), scenes=())
    cases = []
    for index in range(count):
        rng = random_generator(seed, f"held-out-edit-{kind}", index)
        edit = sample_edit(rng, world)
        source, target = render(edit.source).image, render(edit.target).image
        number = int(rng.integers(2**31))
        cases.append(EditCase(edit=edit, source=source, target=target, seed=number))
    return cases


def follow_edits(
    painter: BundlePainter,
    judge: Judge,
    cases: Sequence[EditCase],
    *,
    batch_size: int = 16,
    on_done: Callable[[int], None] | None = None,
) -> tuple[list[Picture], list[EditOutcome]]:
    """The edited pictures and what came of each; `on_done` as in `follow_prompts`."""
    edited: list[Picture] = []
    outcomes: list[EditOutcome] = []
    for start in range(0, len(cases), batch_size):
        batch = cases[start : start + batch_size]
        sources = [case.source for case in batch]
        prompts = [case.edit.instruction for case in batch]
        results = painter.edit(sources, prompts, [case.seed for case in batch])
        kept, round_trip = (
            _unchanged_psnr(batch, pictures) for pictures in (results, painter.round_trip(sources))
        )
        outcomes += [
            _outcome(judge, *row) for row in zip(batch, results, kept, round_trip, strict=True)
        ]
        edited += results
        if on_done is not None:
            on_done(len(batch))
    return edited, outcomes


def _unchanged_psnr(cases: Sequence[EditCase], pictures: Sequence[Picture]) -> list[float]:
    masks: Tensor = torch.from_numpy(np.stack([case.unchanged for case in cases]))
    sources = to_tensor([case.source for case in cases])
    values: list[float] = masked_psnr(to_tensor(list(pictures)), sources, masks).tolist()
    return values


def _outcome(
    judge: Judge, case: EditCase, result: Picture, kept: float, round_trip: float
) -> EditOutcome:
    reading = judge.read(result)
    target = case.edit.target
    relation = len(target.items) == 2 and tells_relation(case.edit.instruction)
    return EditOutcome(
        target=judge_scene(reading, target, by_relation=relation).strict,
        change=change_reached(reading, case.edit),
        unchanged_psnr_db=kept,
        round_trip_psnr_db=round_trip,
    )


def change_reached(reading: Reading, edit: EditTriple) -> bool:
    """Whether the picture has what the edit brings and lacks what it takes, nothing else asked."""
    if edit.kind == "background":
        return reading.background == edit.target.background.colors[0]
    before = Counter(_look(item, edit.kind) for item in edit.source.items)
    after = Counter(_look(item, edit.kind) for item in edit.target.items)
    found = Counter(_found_look(item, edit.kind, edit.target.image_size) for item in reading.items)
    return all(found[look] >= after[look] for look in after - before) and all(
        found[look] <= after[look] for look in before - after
    )


def _look(item: Item, kind: str) -> Look:
    """What tells the item from others, and where or how large it is if the edit is about that."""
    look = (item.kind, item.color)
    return {"move": (*look, item.position), "resize": (*look, item.size)}.get(kind, look)


def _found_look(item: FoundItem, kind: str, image_size: int) -> Look:
    look, size = (item.kind, item.color), item_size(item)
    if kind == "move":
        return (*look, nearest_position(item, size, image_size))
    return (*look, size) if kind == "resize" else look
