"""The runtimes of a bundle side by side: denoising step, encode, decode and whole pictures.

    python -m benchmarks.backends [--bundle bundles/stickers] [--threads 1] [--prompts 100] [--full]
    python -m benchmarks.backends --device cuda:0

PyTorch as it is and with packed linear layers (what `RPIAE_BACKEND=torch` serves), and onnxruntime
with graphs in fp32 and int8; `--full` adds PyTorch compiled, which takes minutes, and in bf16, int8
and fp8. On a GPU: PyTorch as it is, compiled, with CUDA graphs, in its precisions, onnxruntime, and
the engines that the bundle has. Exports a copy of the bundle where it has no exports of its own.
The sides take turns; a ratio is that of medians. Then all draw the same held-out prompts from the
same seeds, which the judge looks at. Prints a table and writes results/backends.json, or -gpu.json;
that of the CPU also becomes the section in README.md.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.backends_sides import (
    ONNX,
    Prompts,
    ServedDenoiser,
    load_sides,
    loaders,
)
from benchmarks.backends_table import Quality, Row, line, markdown
from benchmarks.readme import write_report, write_section
from export.onnx_export import export_onnx
from models.bundle import denoiser_config
from models.exports import usable_export
from models.manifest import BundleError, Manifest, read_manifest
from models.sampler import SamplingOptions, generate_latents
from service.backends.base import Backend
from training.following import PromptCase, categories, held_out_prompts, verdict
from training.judge import Judge
from training.metrics import psnr
from training.painting import to_pictures
from training.provenance import git_revision, hardware, versions
from training.worlds import world_of

RESULTS = Path(__file__).parent / "results" / "backends.json"
GPU_RESULTS = RESULTS.with_name("backends-gpu.json")
BATCHES = (1, 4, 16)
CALLS = ("step", "encode", "decode", "picture")
SEED = 5


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
    backend: Backend, call: str, batch: int, manifest: Manifest, device: str
) -> Callable[[], object]:
    """The call on inputs that are the same for every side."""
    generator = torch.Generator().manual_seed(SEED)
    latents = torch.randn(batch, *manifest.latent_shape, generator=generator)
    if call == "encode":
        images = torch.rand(batch, 3, *manifest.image_size, generator=generator)
        return lambda: backend.encode(images)
    if call == "decode":
        return lambda: backend.decode(latents)
    if call == "step":
        context = backend.prefill([""] * batch, None)
        times = torch.rand(batch, generator=generator)
        return lambda: backend.velocity(latents, times, context)
    prompts, seeds = [""] * batch, list(range(batch))
    return lambda: paint(backend, prompts, seeds, manifest, device)


def paint(
    backend: Backend,
    prompts: Sequence[str],
    seeds: Sequence[int],
    manifest: Manifest,
    device: str,
) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1]."""
    config = denoiser_config(manifest)
    guide = None
    if manifest.guidance == "autoguidance":
        guide = ServedDenoiser(backend, config, device, guide=True)
    denoiser = ServedDenoiser(backend, config, device, guide=False)
    options = options_of(manifest)
    latents = generate_latents(denoiser, Prompts, prompts, seeds, options, guide=guide)
    return backend.decode(latents).clamp(0, 1)


def get_ready(sides: Mapping[str, Backend], manifest: Manifest) -> None:
    """Compile and record the sizes that will be measured, where a side does that."""
    of_pictures = [batch * _rows_of_a_picture(manifest) for batch in BATCHES]
    for name, backend in sides.items():
        started = time.perf_counter()
        for size in sorted({*BATCHES, *of_pictures}, reverse=True):
            backend.measure("velocity", size)
        for call in ("encode", "decode"):
            for size in reversed(BATCHES):
                backend.measure(call, size)
        print(f"{name}: ready after {time.perf_counter() - started:.0f} s", flush=True)


def _rows_of_a_picture(manifest: Manifest) -> int:
    """Of one step; a guide model runs its own."""
    guided = manifest.default_guidance_scale != 1 and manifest.guidance != "autoguidance"
    return 2 if guided else 1


@torch.inference_mode()
def measure(
    sides: Mapping[str, Backend],
    manifest: Manifest,
    rounds: int,
    clock: Callable[[], float],
    device: str,
) -> Iterator[Row]:
    settle = torch.cuda.synchronize if device != "cpu" else lambda: None
    for call in CALLS:
        for batch in BATCHES:
            runs = {
                name: call_of(side, call, batch, manifest, device) for name, side in sides.items()
            }
            for run in runs.values():
                run()
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(rounds):
                for name, run in runs.items():
                    settle()
                    started = clock()
                    run()
                    settle()
                    seconds[name].append(clock() - started)
            yield Row(
                call=call,
                batch=batch,
                seconds={name: statistics.median(times) for name, times in seconds.items()},
                lowest={name: min(times) for name, times in seconds.items()},
            )


@torch.inference_mode()
def compare(
    sides: Mapping[str, Backend],
    manifest: Manifest,
    cases: Sequence[PromptCase],
    judge: Judge,
    device: str,
) -> Iterator[Quality]:
    """All sides on the same prompts and seeds; the first one is what PSNR is measured against."""
    size = max(BATCHES)
    expected: Tensor | None = None
    for name, side in sides.items():
        batches = [cases[i : i + size] for i in range(0, len(cases), size)]
        drawn = [
            paint(side, [c.prompt for c in b], [c.seed for c in b], manifest, device)
            for b in batches
        ]
        images = torch.cat(drawn).cpu()
        expected = images if expected is None else expected
        pairs = zip(to_pictures(images), cases, strict=True)
        verdicts = [verdict(judge, picture, case) for picture, case in pairs]
        yield Quality(
            side=name,
            psnr_db=float(psnr(images, expected).mean()),
            right=sum(one.strict for one in verdicts) / len(verdicts),
        )


def run(
    directory: Path,
    *,
    threads: int,
    rounds: int,
    num_prompts: int,
    device: str = "cpu",
    full: bool = False,
) -> dict[str, Any]:
    """The report; without prompts no quality."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory(prefix="rpiae-backends-") as folder:
        where = exported(directory, Path(folder))
        manifest = read_manifest(where)
        sides = load_sides(loaders(where, manifest, device=device, threads=threads, full=full))
        get_ready(sides, manifest)
        rows = []
        # One thread's own time is not disturbed by what else runs on the machine.
        alone = threads == 1 and device == "cpu"
        clock = time.process_time if alone else time.perf_counter
        for row in measure(sides, manifest, rounds, clock, device):
            rows.append(row)
            print(line(row), flush=True)
        qualities: list[Quality] = []
        if num_prompts and manifest.draws:  # what a bundle without them shows nobody can judge
            world = world_of(manifest.draws)
            kinds = categories(world)
            each = -(-num_prompts // len(kinds))
            cases = [case for kind in kinds for case in held_out_prompts(kind, each, SEED)]
            judge = Judge((*world.shapes, *world.things))
            qualities = list(compare(sides, manifest, cases, judge, device))
            num_prompts = len(cases)
    return {
        "bundle": manifest.name,
        "revision": git_revision(),
        "hardware": hardware(),
        "device": device,
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
    parser.add_argument("--device", default="cpu", help="cpu, or a GPU as in cuda:0")
    parser.add_argument("--full", action="store_true", help="also what takes minutes to compile")
    parser.add_argument("--results", type=Path, help="by default in results/")
    arguments = parser.parse_args()
    report = run(
        arguments.bundle,
        threads=arguments.threads,
        rounds=arguments.rounds,
        num_prompts=arguments.prompts,
        device=arguments.device,
        full=arguments.full,
    )
    block = markdown(report)
    print(block)
    usual = RESULTS if arguments.device == "cpu" else GPU_RESULTS
    results = arguments.results or usual
    write_report(results, report)
    if results == RESULTS:
        write_section("backends", block)


if __name__ == "__main__":
    main()
