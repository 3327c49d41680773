"""Measures a bundle on held-out stickers: reconstruction, prompts, edits, and what tokens know.

Pictures are judged from pixels against the scene that the words came from. Writes `report.json`
and `samples.png` into the bundle and the summary into its manifest. Run: rpiae evaluate <bundle>
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.bundle import Bundle, load_bundle
from models.manifest import write_manifest
from training.batches import random_generator, to_tensor
from training.contact_sheet import SheetEntry, save_sheet
from training.editing import EditCase, EditOutcome, follow_edits, held_out_edits
from training.following import Category, PromptCase, categories, follow_prompts, held_out_prompts
from training.frechet import FEATURES, FrechetReference
from training.judge import Judge
from training.metrics import psnr, ssim, wilson_interval
from training.painting import BundlePainter, Picture
from training.probe import linear_probe
from training.provenance import git_revision, hardware, versions
from training.rendering import render
from training.stickers import World, sample_scene
from training.verdicts import Verdict
from training.worlds import world_of

REPORT_NAME = "report.json"
SAMPLES_NAME = "samples.png"

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

    def task(self, name: str, total: int) -> Callable[[int], None]:
        """A line of the progress bar; returns what advances it."""
        line = self.progress.add_task(name.replace("_", " "), total=total)

        def advance(number: int) -> None:
            self.progress.advance(line, number)

        return advance


def _rate(flags: Sequence[bool]) -> dict[str, float]:
    low, high = wilson_interval(sum(flags), len(flags))
    return {"rate": sum(flags) / len(flags), "low": low, "high": high}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def measure_reconstruction(evaluation: Evaluation, num_scenes: int) -> Report:
    """Mean PSNR and SSIM of held-out scenes after encoding and decoding, on 8-bit pictures."""
    advance = evaluation.task("reconstruction", num_scenes)
    psnrs: list[float] = []
    ssims: list[float] = []
    for start in range(0, num_scenes, _BATCH_SIZE):
        indices = range(start, min(start + _BATCH_SIZE, num_scenes))
        rngs = [random_generator(evaluation.seed, "held-out-scenes", index) for index in indices]
        scenes = [render(sample_scene(rng, evaluation.world)).image for rng in rngs]
        painted, targets = to_tensor(evaluation.painter.round_trip(scenes)), to_tensor(scenes)
        psnrs += psnr(painted, targets).tolist()
        ssims += ssim(painted, targets).tolist()
        advance(len(indices))
    return {"num_scenes": num_scenes, "psnr_db": _mean(psnrs), "ssim": _mean(ssims)}


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
    rates = {name: _rate([getattr(verdict, name) for verdict in verdicts]) for name in names}
    return {"num_prompts": num_prompts, **rates}


def measure_frechet(evaluation: Evaluation) -> Report | None:
    """How far the pictures painted so far are from scenes of the same categories, in the same mix.

    `true_pictures` is the distance of what the prompts asked for, drawn without fault: the floor.
    None if fewer than two pictures were painted.
    """
    painted = [picture for _, _, pictures in evaluation.painted for picture in pictures]
    if len(painted) < 2:
        return None
    true = [render(case.scene).image for _, cases, _ in evaluation.painted for case in cases]
    references: list[Picture] = []
    for category, cases, _ in evaluation.painted:
        other = replace(category, name=f"{category.name}-reference")  # another random stream
        others = held_out_prompts(other, _NUM_REFERENCES * len(cases), evaluation.seed)
        references += [render(case.scene).image for case in others]
    reference = FrechetReference(references)
    return {
        "features": FEATURES,
        "num_pictures": len(painted),
        "num_references": len(references),
        "distance": reference.distance(painted),
        "true_pictures": reference.distance(true),
    }


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
        "target": _rate([outcome.target for outcome in outcomes]),
        "change": _rate([outcome.change for outcome in outcomes]),
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


def evaluate_bundle(
    directory: Path,
    *,
    num_prompts: int = 200,
    num_scenes: int = 500,
    num_edits: int = 40,
    seed: int = 0,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    image_guidance_scale: float | None = None,
    write: bool = True,
) -> Report:
    """Measure a bundle; sampling options are the manifest's where none are given.

    Args:
        num_prompts: of the first category; the others get half of it.
        num_scenes: to encode and decode, and for the linear probe to learn from.
        num_edits: of each kind that the model was trained on.
        write: put report.json, samples.png and the manifest's `quality` into the bundle.

    Raises:
        BundleError: the bundle cannot be loaded, or does not say what it draws.
        ValueError: a number is below 1.
    """
    for name, number in (("prompts", num_prompts), ("scenes", num_scenes), ("edits", num_edits)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    bundle = load_bundle(directory)
    world = world_of(bundle.manifest.draws)
    painter = BundlePainter.of(bundle, num_steps, guidance_scale, image_guidance_scale)
    judge = Judge((*world.shapes, *world.things))
    started = time.monotonic()
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True))
    with progress:
        evaluation = Evaluation(painter, world, judge, seed, progress)
        measured = {
            "reconstruction": measure_reconstruction(evaluation, num_scenes),
            "prompts": {
                category.name: measure_prompts(
                    evaluation, category, max(1, num_prompts // 2) if index else num_prompts
                )
                for index, category in enumerate(categories(world))
            },
            "edits": {
                kind: measure_edits(evaluation, kind, num_edits) for kind in world.edit_kinds
            },
            "frechet": measure_frechet(evaluation),
            "linear_probe": measure_probe(evaluation, num_scenes),
        }
    report = {
        **_circumstances(bundle, painter, seed),
        "seconds": round(time.monotonic() - started, 1),
        **measured,
    }
    if write:
        _write(directory, bundle, report, evaluation.sheet)
    return report


def _circumstances(bundle: Bundle, painter: BundlePainter, seed: int) -> Report:
    options = painter.options
    return {
        "bundle": bundle.manifest.name,
        "revision": git_revision(),
        "hardware": hardware(),
        "versions": versions(),
        "seed": seed,
        "options": {
            "num_steps": options.num_steps,
            "guidance_scale": options.guidance_scale,
            "image_guidance_scale": options.image_guidance_scale,
        },
    }


def _write(
    directory: Path, bundle: Bundle, report: Report, sheet: Sequence[Sequence[SheetEntry]]
) -> None:
    text = json.dumps(report, indent=1)
    (directory / REPORT_NAME).write_text(text + "\n", encoding="utf-8")
    save_sheet(directory / SAMPLES_NAME, sheet)
    write_manifest(directory, bundle.manifest.model_copy(update={"quality": summary(report)}))


def summary(report: Report) -> Report:
    """The report's rates and means without intervals, rounded: the manifest's `quality`."""

    def short(value: Any) -> Any:
        if isinstance(value, dict):
            return value["rate"] if "rate" in value else {k: short(v) for k, v in value.items()}
        return round(value, 4) if isinstance(value, float) else value

    return {key: short(value) for key, value in report.items() if key != "bundle"}
