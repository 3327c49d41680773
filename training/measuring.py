"""The single measurements of an evaluation, each on held-out samples of its own."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

from training import geneval
from training.batches import random_generator, to_tensor
from training.contact_sheet import SheetEntry
from training.editing import EditCase, EditOutcome, follow_edits, held_out_edits
from training.following import Category, PromptCase, follow_prompts, held_out_prompts
from training.frechet import FEATURES, FrechetReference, frechet_distance
from training.judge import Judge
from training.metrics import psnr, ssim, wilson_interval
from training.painting import BundlePainter, Picture
from training.perceptual import Lpips
from training.probe import linear_probe
from training.rendering import render
from training.stickers import World, sample_scene
from training.verdicts import Verdict

_BATCH_SIZE = 16
_SHEET_COLUMNS = 8
# References of the Frechet distance per painted picture.
_NUM_REFERENCES = 3

Report = dict[str, Any]


@dataclass
class Evaluation:
    """What one evaluation works with, and the pictures that it keeps.

    sheet: rows of samples.png; painted: what came of the prompts of each category.
    """

    painter: BundlePainter
    world: World
    judge: Judge
    seed: int
    progress: Progress
    sheet: list[list[SheetEntry]] = field(default_factory=list)
    painted: list[tuple[Category, list[PromptCase], list[Picture]]] = field(default_factory=list)

    @property
    def num_painted(self) -> int:
        """Pictures that were kept."""
        return sum(len(pictures) for _, _, pictures in self.painted)

    def task(self, name: str, total: int) -> Callable[[int], None]:
        """A line of the progress bar; returns what advances it."""
        line = self.progress.add_task(name.replace("_", " "), total=total)

        def advance(number: int) -> None:
            self.progress.advance(line, number)

        return advance


def rate(flags: Sequence[bool]) -> dict[str, float]:
    """Share of true ones with its 95 % interval."""
    low, high = wilson_interval(sum(flags), len(flags))
    return {"rate": sum(flags) / len(flags), "low": low, "high": high}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def measure_reconstruction(
    evaluation: Evaluation, num_scenes: int, lpips: Lpips | None = None
) -> Report:
    """Mean PSNR, SSIM and, given its weights, LPIPS of held-out scenes after encoding and decoding.

    Measured on 8-bit pictures.
    """
    advance = evaluation.task("reconstruction", num_scenes)
    values: dict[str, list[float]] = {"psnr_db": [], "ssim": []}
    for start in range(0, num_scenes, _BATCH_SIZE):
        indices = range(start, min(start + _BATCH_SIZE, num_scenes))
        rngs = [random_generator(evaluation.seed, "held-out-scenes", index) for index in indices]
        scenes = [render(sample_scene(rng, evaluation.world)).image for rng in rngs]
        painted, targets = to_tensor(evaluation.painter.round_trip(scenes)), to_tensor(scenes)
        values["psnr_db"] += psnr(painted, targets).tolist()
        values["ssim"] += ssim(painted, targets).tolist()
        if lpips is not None:
            distances = lpips(2 * painted - 1, 2 * targets - 1)
            values.setdefault("lpips", []).extend(distances.tolist())
        advance(len(indices))
    return {"num_scenes": num_scenes} | {name: _mean(rows) for name, rows in values.items()}


def measure_prompts(evaluation: Evaluation, category: Category, num_prompts: int) -> Report:
    """Rates of the verdicts on one category's held-out prompts, with 95 % intervals."""
    cases = held_out_prompts(category, num_prompts, evaluation.seed)
    advance = evaluation.task(category.name, num_prompts)
    pictures, verdicts = follow_prompts(
        evaluation.painter.paint,
        evaluation.judge,
        cases,
        batch_size=_BATCH_SIZE,
        on_done=advance,
    )
    evaluation.sheet += _prompt_rows(cases, pictures, verdicts)
    evaluation.painted.append((category, cases, pictures))
    names = [one.name for one in fields(Verdict)]
    rates = {name: rate([getattr(verdict, name) for verdict in verdicts]) for name in names}
    return {"num_prompts": num_prompts, **rates}


def measure_geneval(evaluation: Evaluation, num_prompts: int) -> Report | None:
    """Accuracy in GenEval's categories, each with as many held-out prompts, and their mean.

    Categories that the world lacks are `absent` and no part of the mean. The mean's interval is
    Wilson's of all prompts together, a little wider than that of a mean of unlike rates. None if no
    prompts are asked for.
    """
    if not num_prompts:
        return None
    right: dict[str, list[bool]] = {}
    for category in geneval.categories(evaluation.world):
        cases = geneval.geneval_prompts(category, evaluation.world, num_prompts, evaluation.seed)
        advance = evaluation.task(f"geneval: {category}", num_prompts)
        right[category] = []
        for start in range(0, num_prompts, _BATCH_SIZE):
            batch = cases[start : start + _BATCH_SIZE]
            pictures = evaluation.painter.paint(
                [case.prompt for case in batch], [case.seed for case in batch]
            )
            right[category] += [
                geneval.shows(category, evaluation.judge.read(picture), case.scene)
                for picture, case in zip(pictures, batch, strict=True)
            ]
            advance(len(batch))
    return {
        "num_prompts": num_prompts,
        "overall": rate([flag for flags in right.values() for flag in flags]),
        "categories": {category: rate(flags) for category, flags in right.items()},
        "absent": [category for category in geneval.CATEGORIES if category not in right],
    }


def measure_frechet(evaluation: Evaluation) -> Report | None:
    """How far the pictures painted so far are from scenes of the same categories, in the same mix.

    `true_pictures` is the distance of what the prompts asked for, drawn without fault: the floor.
    None if fewer than two pictures were painted.
    """
    if evaluation.num_painted < 2:
        return None
    painted, true, references = _frechet_sets(evaluation)
    reference = FrechetReference(references)
    return {
        "features": FEATURES,
        "num_pictures": len(painted),
        "num_references": len(references),
        "distance": reference.distance(painted),
        "true_pictures": reference.distance(true),
    }


def measure_inception(evaluation: Evaluation, inception: nn.Module, weights: str) -> Report | None:
    """The same in the features of Inception, whose weights are called `weights`.

    It is the usual FID, but of few pictures, which makes it larger: never compare it with an FID
    of another number. None if fewer than two pictures were painted.
    """
    if evaluation.num_painted < 2:
        return None
    sets = _frechet_sets(evaluation)
    advance = evaluation.task("inception", sum(map(len, sets)))
    features = []
    for pictures in sets:
        rows = []
        for start in range(0, len(pictures), _BATCH_SIZE):
            batch = pictures[start : start + _BATCH_SIZE]
            rows.append(inception(to_tensor(list(batch))))
            advance(len(batch))
        features.append(torch.cat(rows).double().numpy())
    painted, true, references = features
    return {
        "features": f"pool features of Inception, {weights}",
        "num_pictures": len(painted),
        "num_references": len(references),
        "distance": frechet_distance(painted, references),
        "true_pictures": frechet_distance(true, references),
    }


def _frechet_sets(evaluation: Evaluation) -> tuple[list[Picture], list[Picture], list[Picture]]:
    """What was painted, what the prompts asked for, and the references."""
    painted = [picture for _, _, pictures in evaluation.painted for picture in pictures]
    true = [render(case.scene).image for _, cases, _ in evaluation.painted for case in cases]
    references: list[Picture] = []
    for category, cases, _ in evaluation.painted:
        other = replace(category, name=f"{category.name}-reference")  # another random stream
        others = held_out_prompts(other, _NUM_REFERENCES * len(cases), evaluation.seed)
        references += [render(case.scene).image for case in others]
    return painted, true, references


def measure_probe(evaluation: Evaluation, num_scenes: int) -> Report:
    """Accuracy of a linear probe of the encoder's tokens, tested on half as many other scenes."""
    num_test_scenes = max(1, num_scenes // 2)
    accuracies = linear_probe(
        evaluation.painter.bundle.autoencoder.encoder,
        evaluation.world,
        num_train_scenes=num_scenes,
        num_test_scenes=num_test_scenes,
        seed=evaluation.seed,
        on_done=evaluation.task("linear probe", num_scenes + num_test_scenes),
    )
    return {
        "num_train_scenes": num_scenes,
        "num_test_scenes": num_test_scenes,
        **{target: asdict(accuracy) for target, accuracy in accuracies.items()},
    }


def measure_edits(evaluation: Evaluation, kind: str, num_edits: int) -> Report:
    """How often one kind of edit does what it says, and how well it keeps the rest."""
    cases = held_out_edits(evaluation.world, kind, num_edits, evaluation.seed)
    advance = evaluation.task(f"edit: {kind}", num_edits)
    pictures, outcomes = follow_edits(
        evaluation.painter, evaluation.judge, cases, batch_size=_BATCH_SIZE, on_done=advance
    )
    evaluation.sheet.append(_edit_row(cases, pictures, outcomes))
    return {
        "num_edits": num_edits,
        "target": rate([outcome.target for outcome in outcomes]),
        "change": rate([outcome.change for outcome in outcomes]),
        "unchanged_psnr_db": _mean([outcome.unchanged_psnr_db for outcome in outcomes]),
        "round_trip_psnr_db": _mean([outcome.round_trip_psnr_db for outcome in outcomes]),
    }


def _prompt_rows(
    cases: Sequence[PromptCase], pictures: Sequence[Picture], verdicts: Sequence[Verdict]
) -> list[list[SheetEntry]]:
    """The first prompts of a category, unchosen: two rows of the sheet."""
    entries = [
        SheetEntry(pictures=(picture,), text=case.prompt, right=verdict.strict)
        for case, picture, verdict in zip(cases, pictures, verdicts, strict=True)
    ][: 2 * _SHEET_COLUMNS]
    return [entries[:_SHEET_COLUMNS], entries[_SHEET_COLUMNS:]]


def _edit_row(
    cases: Sequence[EditCase], pictures: Sequence[Picture], outcomes: Sequence[EditOutcome]
) -> list[SheetEntry]:
    entries = [
        SheetEntry(
            pictures=(case.source, picture), text=case.edit.instruction, right=outcome.target
        )
        for case, picture, outcome in zip(cases, pictures, outcomes, strict=True)
    ]
    return entries[: _SHEET_COLUMNS // 2]
