"""What each sampler costs and how far it is from an almost exact solution, by number of steps.

    python -m benchmarks.samplers [--bundle bundles/stickers] [--prompts 64]

Draws the same held-out prompts from the same noise with every sampler and number of steps, guided
as the bundle is by default. The reference is Heun's method with 250 steps: second order, and built
unlike the multi-step samplers, so that it favours none of them. Euler and UniPC with as many steps
are listed too: how far they still are from the reference is the limit of what these figures tell.
Prints a table, writes results/samplers.json and the section in README.md.
"""

import argparse
import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.readme import write_section
from models.bundle import Bundle, load_bundle
from models.manifest import SAMPLERS, Sampler
from models.sampler import SamplingOptions, generate_latents
from training.following import PromptCase, categories, held_out_prompts, verdict
from training.judge import Judge
from training.metrics import psnr
from training.painting import to_pictures
from training.provenance import git_revision, hardware, short_revision, versions
from training.worlds import world_of

STEPS = (4, 6, 8, 10, 15, 20, 30, 50)
REFERENCE: tuple[Sampler, int] = ("heun", 250)
LIMITS: tuple[tuple[Sampler, int], ...] = (("euler", 250), ("unipc", 250))
RESULTS = Path(__file__).parent / "results" / "samplers.json"
SEED = 3  # of the held-out prompts
BATCH = 16


@dataclass(frozen=True, kw_only=True)
class Row:
    """One sampler with one number of steps.

    evaluations: velocity calls of a run; error: root mean square difference of the latents from the
    reference's, over the reference's own root mean square; median_error: the same picture by
    picture, the median; psnr_db: mean over pictures, against the reference's pictures; right: share
    of pictures that the judge finds right in everything.
    """

    sampler: Sampler
    steps: int
    evaluations: int
    error: float
    median_error: float
    psnr_db: float
    right: float


@dataclass(frozen=True)
class Drawn:
    """Latents (B, C, h, w) and pictures (B, 3, H, W) in [0, 1] of all prompts."""

    latents: Tensor
    images: Tensor


def draw(bundle: Bundle, cases: Sequence[PromptCase], options: SamplingOptions) -> Drawn:
    assert bundle.denoiser is not None
    assert bundle.tokenizer is not None
    latents, images = [], []
    for start in range(0, len(cases), BATCH):
        batch = cases[start : start + BATCH]
        drawn = generate_latents(
            bundle.denoiser,
            bundle.tokenizer,
            [case.prompt for case in batch],
            [case.seed for case in batch],
            options,
            guide=bundle.guide,
        )
        latents.append(drawn)
        with torch.inference_mode():
            images.append(bundle.autoencoder.decode(drawn).sample.clamp(0, 1))
    return Drawn(torch.cat(latents), torch.cat(images))


def compare(
    drawn: Drawn,
    reference: Drawn,
    cases: Sequence[PromptCase],
    judge: Judge,
    options: SamplingOptions,
) -> Row:
    scale = reference.latents.square().mean().sqrt()
    errors = (drawn.latents - reference.latents).square().flatten(1).mean(1)
    pictures = to_pictures(drawn.images)
    verdicts = [verdict(judge, *pair) for pair in zip(pictures, cases, strict=True)]
    return Row(
        sampler=options.sampler,
        steps=options.num_steps,
        evaluations=options.plan().num_evaluations,
        error=float(errors.mean().sqrt() / scale),
        median_error=float(errors.sqrt().median() / scale),
        psnr_db=float(psnr(drawn.images, reference.images).mean()),
        right=sum(one.strict for one in verdicts) / len(verdicts),
    )


def measure(bundle: Bundle, cases: Sequence[PromptCase]) -> list[Row]:
    """The reference first, then every sampler by number of steps."""
    manifest = bundle.manifest
    world = world_of(manifest.draws)
    judge = Judge((*world.shapes, *world.things))
    rows: list[Row] = []
    reference: Drawn | None = None
    for sampler, steps in (REFERENCE, *product(SAMPLERS, STEPS), *LIMITS):
        options = SamplingOptions(
            num_steps=steps,
            shift=manifest.timestep_shift,
            sampler=sampler,
            guidance_scale=manifest.default_guidance_scale,
            guidance_interval=manifest.guidance_interval,
        )
        drawn = draw(bundle, cases, options)
        reference = reference or drawn
        rows.append(compare(drawn, reference, cases, judge, options))
        print(line(rows[-1]), flush=True)
    return rows


HEADER = ("sampler", "steps", "evaluations", "error", "median", "PSNR dB", "right")


def cells(row: Row) -> tuple[str, ...]:
    exact = (row.sampler, row.steps) == REFERENCE
    return (
        row.sampler,
        str(row.steps),
        str(row.evaluations),
        "reference" if exact else f"{row.error:.3f}",
        "" if exact else f"{row.median_error:.3f}",
        "" if exact else f"{row.psnr_db:.1f}",
        f"{row.right:.0%}",
    )


def line(row: Row) -> str:
    return "  ".join(cell.rjust(11) for cell in cells(row))


def markdown(report: dict[str, Any]) -> str:
    """What stands in the README: the figures side by side, then how they were measured."""
    rows = [Row(**fields) for fields in report["rows"]]
    found = {(row.sampler, row.steps): row for row in rows}
    lines = [
        "| steps | " + " | ".join(f"`{sampler}`" for sampler in SAMPLERS) + " |",
        "|---:|" + "---:|" * len(SAMPLERS),
    ]
    for steps in STEPS:
        row = [found[sampler, steps] for sampler in SAMPLERS]
        values = (f"{one.median_error:.3f}, {one.psnr_db:.1f} dB, {one.right:.0%}" for one in row)
        lines.append(f"| {steps} | " + " | ".join(values) + " |")
    limits = "; ".join(
        f"`{sampler}` {found[sampler, steps].median_error:.3f}, "
        f"{found[sampler, steps].psnr_db:.1f} dB"
        for sampler, steps in LIMITS
    )
    name, steps = REFERENCE
    cell = (
        f"Each cell: median over pictures of the latents' distance from the reference, as a share "
        f"of the latents' root mean square; mean PSNR of the pictures against the reference's; "
        f"share of pictures that the judge finds right in everything (of the reference's: "
        f"{found[REFERENCE].right:.0%}). The reference is `{name}` with {steps} steps. With 250 "
        f"steps the others are this far from it, which is the limit of what the table tells: "
        f"{limits}. A step is one evaluation of the model, but with `heun` two, the last one "
        f"excepted; `euler-reference` takes one step less than its number."
    )
    machine = report["hardware"]
    circumstances = (
        f"{report['num_prompts']} held-out prompts, bundle `{report['bundle']}`, guidance scale "
        f"{report['guidance_scale']:g}; {machine['processor']}, {machine['cores']} cores, torch "
        f"{report['versions']['torch']}, revision `{short_revision(report['revision'])}`."
    )
    paragraphs = [
        textwrap.fill(part, 100, break_on_hyphens=False) for part in (cell, circumstances)
    ]
    return "\n\n".join(["\n".join(lines), *paragraphs])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/stickers"))
    parser.add_argument("--prompts", type=int, default=64, help="pictures, over all categories")
    arguments = parser.parse_args()
    bundle = load_bundle(arguments.bundle)
    kinds = categories(world_of(bundle.manifest.draws))
    each = -(-arguments.prompts // len(kinds))
    cases = [case for kind in kinds for case in held_out_prompts(kind, each, SEED)]
    print("  ".join(name.rjust(11) for name in HEADER))
    rows = measure(bundle, cases)
    report = {
        "bundle": bundle.manifest.name,
        "revision": git_revision(),
        "hardware": hardware(),
        "versions": versions(),
        "num_prompts": len(cases),
        "guidance_scale": bundle.manifest.default_guidance_scale,
        "rows": [asdict(row) for row in rows],
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_section("samplers", markdown(report))


if __name__ == "__main__":
    main()
