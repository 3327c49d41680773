"""Measures a bundle on held-out stickers: reconstruction, prompts, edits, and what tokens know.

Pictures are judged from pixels against the scene that the words came from. Writes `report.json`
and `samples.png` into the bundle and the summary into its manifest. Run: rpiae evaluate <bundle>
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from models.bundle import Bundle, load_bundle
from models.manifest import Manifest, write_manifest
from training.contact_sheet import SheetEntry, save_sheet
from training.following import categories
from training.inception import Inception
from training.judge import Judge
from training.measuring import (
    Evaluation,
    Report,
    measure_edits,
    measure_frechet,
    measure_geneval,
    measure_inception,
    measure_probe,
    measure_prompts,
    measure_reconstruction,
)
from training.painting import BundlePainter
from training.perceptual import Lpips
from training.provenance import git_revision, hardware, versions
from training.worlds import world_of

REPORT_NAME = "report.json"
SAMPLES_NAME = "samples.png"


def evaluate_bundle(
    directory: Path,
    *,
    num_prompts: int = 200,
    num_scenes: int = 500,
    num_edits: int = 40,
    num_geneval: int = 100,
    seed: int = 0,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    image_guidance_scale: float | None = None,
    lpips_weights: tuple[Path, Path] | None = None,
    inception_weights: Path | None = None,
    write: bool = True,
) -> Report:
    """Measure a bundle; sampling options are the manifest's where none are given.

    Args:
        num_prompts: of the first category; the others get half of it.
        num_scenes: to encode and decode, and for the linear probe to learn from.
        num_edits: of each kind that the model was trained on.
        num_geneval: prompts of each of GenEval's categories; 0 leaves them out.
        lpips_weights: files of VGG16 and of LPIPS' linear heads; without them there is no LPIPS.
        inception_weights: file of the FID's Inception; without it there is no such distance.
        write: put report.json, samples.png and the manifest's `quality` into the bundle.

    Raises:
        BundleError: the bundle or the weights cannot be loaded, or it does not say what it draws.
        CheckpointError: weights are missing or unreadable.
        ValueError: a number is below 1, or that of GenEval's prompts below 0.
    """
    for name, number in (("prompts", num_prompts), ("scenes", num_scenes), ("edits", num_edits)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if num_geneval < 0:
        raise ValueError(f"geneval must not be negative, got {num_geneval}")
    lpips = Lpips.load(*lpips_weights) if lpips_weights else None
    inception = Inception.load(inception_weights) if inception_weights else None
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
            "reconstruction": measure_reconstruction(evaluation, num_scenes, lpips),
            "prompts": {
                category.name: measure_prompts(
                    evaluation, category, max(1, num_prompts // 2) if index else num_prompts
                )
                for index, category in enumerate(categories(world))
            },
            "geneval": measure_geneval(evaluation, num_geneval),
            "edits": {
                kind: measure_edits(evaluation, kind, num_edits) for kind in world.edit_kinds
            },
            "frechet": measure_frechet(evaluation),
            "frechet_inception": (
                measure_inception(evaluation, inception, inception_weights.name)
                if inception is not None and inception_weights is not None
                else None
            ),
            "linear_probe": measure_probe(evaluation, num_scenes),
        }
    report = {
        **_circumstances(bundle, painter, seed, lpips_weights),
        "seconds": round(time.monotonic() - started, 1),
        **measured,
    }
    if write:
        _write(directory, bundle, report, evaluation.sheet)
    return report


def _circumstances(
    bundle: Bundle,
    painter: BundlePainter,
    seed: int,
    lpips_weights: tuple[Path, Path] | None,
) -> Report:
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
        "lpips_weights": [path.name for path in lpips_weights] if lpips_weights else None,
        "losses": _losses(bundle.manifest),
    }


def _losses(manifest: Manifest) -> dict[str, dict[str, str]]:
    """Perceptual term and discriminator of each run that recorded them."""
    stages = manifest.training.get("stages", [])
    return {stage["name"]: stage["used"] for stage in stages if stage.get("used")}


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
