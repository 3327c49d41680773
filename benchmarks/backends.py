"""The runtimes of a bundle side by side: denoising step, encode, decode and whole pictures.

    python -m benchmarks.backends [--bundle bundles/stickers] [--threads 1] [--prompts 100]

PyTorch as it is and with packed linear layers (what `RPIAE_BACKEND=torch` serves), and onnxruntime
with graphs in fp32 and int8. Exports a copy of the bundle where it has no exports of its own. The
sides take turns; a ratio is that of medians. Then all draw the same held-out prompts from the same
seeds, which the judge looks at. Prints a table, writes results/backends.json and the section in
README.md.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.backends_table import EAGER, ONNX, PACKED, Quality, Row, line, markdown
from benchmarks.readme import write_report, write_section
from export.onnx_export import export_onnx
from models.bundle import Bundle, Tokenizer, load_bundle
from models.exports import usable_export
from models.manifest import BundleError, Manifest, Precision, read_manifest
from models.onnx_model import load_export
from models.sampler import AnyDenoiser, SamplingOptions, generate_latents
from training.following import PromptCase, categories, held_out_prompts, verdict
from training.judge import Judge
from training.metrics import psnr
from training.painting import to_pictures
from training.provenance import git_revision, hardware, versions
from training.worlds import world_of

RESULTS = Path(__file__).parent / "results" / "backends.json"
BATCHES = (1, 4, 16)
CALLS = ("step", "encode", "decode", "picture")
SEED = 5


@dataclass(frozen=True, kw_only=True)
class Side:
    """One runtime with the bundle's model."""

    denoiser: AnyDenoiser
    guide: AnyDenoiser | None
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def torch_side(bundle: Bundle) -> Side:
    assert bundle.denoiser is not None
    return Side(
        denoiser=bundle.denoiser,
        guide=bundle.guide,
        encode=lambda images: bundle.autoencoder.encode(images).latent_dist.mean,
        decode=lambda latents: bundle.autoencoder.decode(latents).sample,
    )


def onnx_side(directory: Path, precision: Precision, threads: int) -> Side:
    manifest = read_manifest(directory)
    export = usable_export(directory, manifest, precision)
    model = load_export(directory, manifest, export, threads=threads)
    assert model.denoiser is not None
    return Side(
        denoiser=model.denoiser,
        guide=model.guide,
        encode=lambda images: model.encode(images).mean,
        decode=model.decode,
    )


def exported(directory: Path, folder: Path) -> Path:
    """The bundle itself, or a copy of it in `folder` with the exports that it lacks."""
    manifest = read_manifest(directory)
    try:
        for precision in ONNX:
            usable_export(directory, manifest, precision)
    except BundleError:
        copy = folder / directory.resolve().name
        shutil.copytree(directory, copy)
        for precision in ONNX:
            export_onnx(copy, precision, print)
        return copy
    return directory


def options_of(manifest: Manifest) -> SamplingOptions:
    return SamplingOptions(
        num_steps=manifest.default_steps,
        shift=manifest.timestep_shift,
        sampler=manifest.sampler,
        guidance_scale=manifest.default_guidance_scale,
        guidance_interval=manifest.guidance_interval,
    )


def call_of(
    side: Side, call: str, batch: int, tokenizer: Tokenizer, manifest: Manifest
) -> Callable[[], object]:
    """The call on inputs that are the same for every side."""
    generator = torch.Generator().manual_seed(SEED)
    latents = torch.randn(batch, *manifest.latent_shape, generator=generator)
    if call == "encode":
        images = torch.rand(batch, 3, *manifest.image_size, generator=generator)
        return lambda: side.encode(images)
    if call == "decode":
        return lambda: side.decode(latents)
    if call == "step":
        context = side.denoiser.prefill(tokenizer.encode([""] * batch))
        times = torch.rand(batch, generator=generator)
        return lambda: side.denoiser.velocity(latents, times, context)
    prompts, seeds = [""] * batch, list(range(batch))
    return lambda: paint(side, tokenizer, prompts, seeds, options_of(manifest))


def paint(
    side: Side,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    seeds: Sequence[int],
    options: SamplingOptions,
) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1]."""
    latents = generate_latents(side.denoiser, tokenizer, prompts, seeds, options, guide=side.guide)
    return side.decode(latents).clamp(0, 1)


@torch.inference_mode()
def measure(
    sides: dict[str, Side],
    tokenizer: Tokenizer,
    manifest: Manifest,
    rounds: int,
    clock: Callable[[], float],
) -> Iterator[Row]:
    for call in CALLS:
        for batch in BATCHES:
            runs = {
                name: call_of(side, call, batch, tokenizer, manifest)
                for name, side in sides.items()
            }
            for run in runs.values():
                run()
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(rounds):
                for name, run in runs.items():
                    started = clock()
                    run()
                    seconds[name].append(clock() - started)
            yield Row(
                call=call,
                batch=batch,
                seconds={name: statistics.median(times) for name, times in seconds.items()},
                lowest={name: min(times) for name, times in seconds.items()},
            )


@torch.inference_mode()
def compare(
    sides: dict[str, Side],
    tokenizer: Tokenizer,
    manifest: Manifest,
    cases: Sequence[PromptCase],
    judge: Judge,
) -> Iterator[Quality]:
    """All sides on the same prompts and seeds; the first one is what PSNR is measured against."""
    options, size = options_of(manifest), max(BATCHES)
    expected: Tensor | None = None
    for name, side in sides.items():
        batches = [cases[i : i + size] for i in range(0, len(cases), size)]
        images = torch.cat(
            [
                paint(side, tokenizer, [c.prompt for c in b], [c.seed for c in b], options)
                for b in batches
            ]
        )
        expected = images if expected is None else expected
        pairs = zip(to_pictures(images), cases, strict=True)
        verdicts = [verdict(judge, picture, case) for picture, case in pairs]
        yield Quality(
            side=name,
            psnr_db=float(psnr(images, expected).mean()),
            right=sum(one.strict for one in verdicts) / len(verdicts),
        )


def run(directory: Path, *, threads: int, rounds: int, num_prompts: int) -> dict[str, Any]:
    """The report; without prompts no quality."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="rpiae-backends-") as folder:
        where = exported(directory, Path(folder))
        eager = load_bundle(where)
        manifest, tokenizer = eager.manifest, eager.tokenizer
        assert tokenizer is not None
        sides = {
            EAGER: torch_side(eager),
            PACKED: torch_side(load_bundle(where).pack()),
            **{name: onnx_side(where, precision, threads) for precision, name in ONNX.items()},
        }
        rows = []
        # One thread's own time is not disturbed by what else runs on the machine.
        clock = time.process_time if threads == 1 else time.perf_counter
        for row in measure(sides, tokenizer, manifest, rounds, clock):
            rows.append(row)
            print(line(row), flush=True)
        qualities: list[Quality] = []
        if num_prompts and manifest.draws:  # what a bundle without them shows nobody can judge
            world = world_of(manifest.draws)
            kinds = categories(world)
            each = -(-num_prompts // len(kinds))
            cases = [case for kind in kinds for case in held_out_prompts(kind, each, SEED)]
            judge = Judge((*world.shapes, *world.things))
            qualities = list(compare(sides, tokenizer, manifest, cases, judge))
            num_prompts = len(cases)
    return {
        "bundle": manifest.name,
        "revision": git_revision(),
        "hardware": hardware(),
        "versions": {**versions(), "onnxruntime": version("onnxruntime")},
        "rounds": rounds,
        "steps": manifest.default_steps,
        "num_prompts": num_prompts,
        "rows": [asdict(row) for row in rows],
        "qualities": [asdict(one) for one in qualities],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/stickers"))
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--rounds", type=int, default=15, help="runs of each side")
    parser.add_argument("--prompts", type=int, default=100, help="pictures to be judged; 0: none")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    report = run(
        arguments.bundle,
        threads=arguments.threads,
        rounds=arguments.rounds,
        num_prompts=arguments.prompts,
    )
    block = markdown(report)
    print(block)
    write_report(arguments.results, report)
    if arguments.results == RESULTS:
        write_section("backends", block)


if __name__ == "__main__":
    main()
