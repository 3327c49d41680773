"""Measures the compared tokenizers and their denoisers, each of a seed once.

Reads finished runs and writes one JSON file per variant and seed, from which table and plot are
made; files of runs that are elsewhere stay as they are. Run: rpiae evaluate compare
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from models.autoencoder import RPiAE
from models.encoder import build_encoder
from models.weights import load_weights
from training.batches import WORLDS
from training.bundling import BundleConfig, assemble_bundle, need_checkpoint, stage_records
from training.comparison.variants import PREFIX, VARIANTS, Variant
from training.config import RunConfig
from training.following import categories
from training.judge import Judge
from training.measuring import (
    Evaluation,
    Report,
    measure_edits,
    measure_frechet,
    measure_prompts,
    measure_reconstruction,
)
from training.painting import BundlePainter
from training.plans import with_seed
from training.probe import linear_probe
from training.provenance import git_revision, hardware, versions
from training.run import Run

RESULTS = Path("training/comparison/results")
PRETRAINED = "pretrained"
"""Name of the results of the encoder that the others start from."""
PROBED = ("kind", "color")


@dataclass(frozen=True, kw_only=True)
class Samples:
    """How much is measured; `seed` chooses the held-out samples, the same for every variant.

    prompts: with one shape, half as many with two; scenes: to encode and decode, twice as many for
    the linear probes to learn from and twice as many to test them; edits: of each kind.
    """

    prompts: int = 200
    scenes: int = 500
    edits: int = 20
    seed: int = 0
    steps: int = 20
    guidance_scale: float = 3.0
    image_guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("prompts", "scenes", "edits", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def result_path(folder: Path, name: str, seed: int) -> Path:
    """File of one variant and training seed."""
    return folder / f"{name}-seed{seed}.json"


def finished_seeds(root: Path, chosen: Mapping[str, Variant]) -> list[tuple[Variant, int]]:
    """Variants with the seeds whose last run in `root` is finished, in the variants' order."""
    found = []
    for variant in chosen.values():
        last = variant.runs[-1]
        folders = [root / last.name, *root.glob(f"{last.name}-seed*")]
        seeds = sorted({_seed_of(folder.name, last.name) for folder in folders} - {None})
        found += [
            (variant, seed)
            for seed in seeds
            if seed is not None and Run(root, _of(last, seed)).finished
        ]
    return found


def _seed_of(folder: str, name: str) -> int | None:
    number = folder.removeprefix(name).removeprefix("-seed")
    if folder == name:
        return 0
    return int(number) if number.isdecimal() and int(number) > 0 else None


def _of(config: RunConfig, seed: int) -> RunConfig:
    step = with_seed(config, seed)
    assert isinstance(step, RunConfig)
    return step


def evaluate_comparison(
    root: Path,
    results: Path,
    samples: Samples,
    chosen: Mapping[str, Variant] | None = None,
    on_result: Callable[[Path], None] | None = None,
) -> list[Path]:
    """Measure what is finished in `root` and has no result yet; the files that were written.

    chosen: default: all variants. on_result: is told each file once it is written.

    Raises:
        CheckpointError: a run that a finished one started from is missing or damaged.
        ValueError: a number of samples is below 1.
    """
    written = []
    for variant, seed in finished_seeds(root, VARIANTS if chosen is None else chosen):
        for name, measure in ((PRETRAINED, measure_pretrained), (variant.name, measure_variant)):
            path = result_path(results, name, seed)
            first = _of(variant.runs[0], seed)
            if path.exists() or (name == PRETRAINED and first.stage != "pretrain"):
                continue
            started = time.monotonic()
            found = measure(variant, root, seed, samples)
            report = {
                "variant": name,
                "seed": seed,
                **_circumstances(samples),
                "seconds": round(time.monotonic() - started, 1),
                **found,
            }
            _write(path, report)
            written.append(path)
            if on_result is not None:
                on_result(path)
    return written


def _write(path: Path, report: Report) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _circumstances(samples: Samples) -> Report:
    return {
        "revision": git_revision(),
        "hardware": hardware(),
        "versions": versions(),
        "samples": asdict(samples),
    }


def measure_pretrained(variant: Variant, root: Path, seed: int, samples: Samples) -> Report:
    """The linear probe of the encoder of stage 0, which other encoders are compared with."""
    config = _of(variant.runs[0], seed)
    checkpoint = need_checkpoint(root, config.name)
    encoder = build_encoder(config.model.encoder)
    load_weights(encoder, checkpoint / "encoder.safetensors")
    return {
        "runs": _costs(stage_records(root, config.name)),
        "probe": {"tokens": _probe(encoder.eval(), config, samples)},
    }


def measure_variant(variant: Variant, root: Path, seed: int, samples: Samples) -> Report:
    """Reconstruction, linear probes of tokens and latents, prompts, edits, Frechet distance."""
    last = _of(variant.runs[-1], seed)
    config = BundleConfig(
        name=f"{PREFIX}-{variant.name}",
        bundle=f"{PREFIX}-{variant.name}",
        directory="",
        diffusion=last.name,
        default_steps=samples.steps,
        guidance_scale=samples.guidance_scale,
        image_guidance_scale=samples.image_guidance_scale,
    )
    painter = BundlePainter.of(assemble_bundle(config, root))
    model, world = painter.bundle.autoencoder, WORLDS[last.world]
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, transient=True) as progress:
        evaluation = Evaluation(
            painter, world, Judge((*world.shapes, *world.things)), samples.seed, progress
        )
        prompts = {
            category.name: measure_prompts(
                evaluation,
                category,
                max(1, samples.prompts // 2) if index else samples.prompts,
            )
            for index, category in enumerate(categories(world))
        }
        return {
            "title": variant.title,
            "latent_shape": list(model.latent_shape),
            "runs": _costs(painter.bundle.manifest.training["stages"]),
            "reconstruction": measure_reconstruction(evaluation, samples.scenes),
            "prompts": prompts,
            "frechet": measure_frechet(evaluation),
            "edits": {
                kind: measure_edits(evaluation, kind, samples.edits) for kind in world.edit_kinds
            },
            "probe": _probes(model, last, samples),
        }


def _probes(model: RPiAE, config: RunConfig, samples: Samples) -> Report:
    """Of the encoder's tokens, and of the latents where these are not the tokens."""
    tokens = _probe(model.encoder, config, samples)
    if model.config.bridge.kind == "identity":
        return {"tokens": tokens, "latents": tokens}

    def latents(images: Tensor) -> Tensor:
        mean: Tensor = model.bridge_encoder(model.encoder(images)).mean
        return mean

    return {"tokens": tokens, "latents": _probe(latents, config, samples)}


def _probe(
    encode: nn.Module | Callable[[Tensor], Tensor], config: RunConfig, samples: Samples
) -> Report:
    accuracies = linear_probe(
        encode,
        WORLDS[config.world],
        num_train_scenes=2 * samples.scenes,
        num_test_scenes=2 * samples.scenes,
        seed=samples.seed,
        targets=PROBED,
    )
    return {target: asdict(accuracy) for target, accuracy in accuracies.items()}


def _costs(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each run cost; seconds are those of its steps."""
    kept = ("name", "steps", "samples", "seconds", "last")
    return [
        {"stage": stage["config"]["stage"], **{name: stage[name] for name in kept}}
        for stage in stages
    ]
