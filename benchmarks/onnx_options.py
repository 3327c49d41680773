"""onnxruntime's session options, each changed alone, on the steps of a bundle's denoiser.

    python -m benchmarks.onnx_options [--bundle bundles/stickers] [--threads 1,2] [--repeats 30]

Exports a copy of the bundle where it has no export of its own. The variants take turns, so that a
busy machine slows all of them; a ratio is that of medians to the options that are served. Prints a
table and writes results/onnx_options.json and, from there, the section in README.md.
"""

import argparse
import dataclasses
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.readme import write_report, write_section
from export.onnx_export import export_onnx
from models.exports import usable_export
from models.manifest import BundleError, read_manifest
from models.onnx_session import GraphSession, Tuning
from service.backends.onnx_backend import OnnxBackend
from training.provenance import git_revision, hardware, versions

RESULTS = Path(__file__).parent / "results" / "onnx_options.json"
BATCHES = (1, 4, 16)
SEED = 5
SERVED = Tuning()
VARIANTS: Mapping[str, Tuning] = {
    "as served": SERVED,
    "optimisation extended": dataclasses.replace(SERVED, optimisation="extended"),
    "optimisation basic": dataclasses.replace(SERVED, optimisation="basic"),
    "optimisation off": dataclasses.replace(SERVED, optimisation="off"),
    "spinning on": dataclasses.replace(SERVED, spinning=True),
    "arena off": dataclasses.replace(SERVED, arena=False),
    "memory pattern off": dataclasses.replace(SERVED, memory_pattern=False),
    "prepacking off": dataclasses.replace(SERVED, prepacking=False),
}


def exported(directory: Path, folder: Path) -> Path:
    """The bundle itself, or a copy of it in `folder` with an fp32 export."""
    try:
        usable_export(directory, read_manifest(directory), "fp32")
    except BundleError:
        copy = folder / directory.resolve().name
        shutil.copytree(directory, copy)
        export_onnx(copy, "fp32", print)
        return copy
    return directory


def steps_of(
    directory: Path, rows: int, threads: int
) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """One step of that many rows in each variant, on the same inputs."""
    manifest = read_manifest(directory)
    backend = OnnxBackend.load(directory, manifest, threads=threads)
    generator = torch.Generator().manual_seed(SEED)
    context = backend.prefill([""] * rows, None)
    x = torch.randn(rows, *manifest.latent_shape, generator=generator)
    inputs = {"t": torch.rand(rows, generator=generator)}
    if hasattr(context, "labels"):
        inputs |= {"latents": x, "labels": context.labels}
    else:
        names = ("keys", "values", "mask", "source")
        inputs |= {"x": x} | {name: getattr(context, name) for name in names}
    (velocity,) = (
        artifact.files[0].path
        for artifact in usable_export(directory, manifest, "fp32").artifacts
        if artifact.graph == "velocity"
    )
    sessions = {
        name: GraphSession(directory / velocity, threads=threads, tuning=tuning)
        for name, tuning in VARIANTS.items()
    }
    return {name: partial(session.run, inputs, [x.shape]) for name, session in sessions.items()}


def measure(steps: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds; each variant runs once in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(repeats + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if number >= 2:  # the first ones take memory and learn its pattern
                seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(times) for name, times in seconds.items()}


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Milliseconds and their ratio to those that are served; above 1 the variant is slower."""
    columns = list(next(iter(rows.values())))
    lines = ["| option | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, medians in rows.items():
        cells = (
            f"{medians[column]:.1f} ms ({medians[column] / rows['as served'][column]:.2f})"
            for column in columns
        )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown(report: Mapping[str, Any]) -> str:
    """The section in the README."""
    return (
        f"{table(report['milliseconds'])}\n\nThe denoiser of `{report['bundle']}`, medians of "
        f"{report['repeats']}; {report['hardware']['processor']}, onnxruntime "
        f"{report['versions']['onnxruntime']}, revision {report['revision'][:10]}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/stickers"))
    parser.add_argument("--threads", default="1,2", help="numbers of threads, with commas")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows: dict[str, dict[str, float]] = {name: {} for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        directory = exported(arguments.bundle, Path(folder))
        for threads in map(int, arguments.threads.split(",")):
            for batch in BATCHES:
                medians = measure(steps_of(directory, batch, threads), arguments.repeats)
                for name, milliseconds in medians.items():
                    rows[name][f"{batch} rows, {threads} threads"] = milliseconds
    report = {
        "bundle": arguments.bundle.name,
        "repeats": arguments.repeats,
        "milliseconds": rows,
        "versions": {**versions(), "onnxruntime": version("onnxruntime")},
        "hardware": hardware(),
        "revision": git_revision(),
    }
    print(markdown(report))
    write_report(arguments.output, report)
    if arguments.output == RESULTS:
        write_section("onnx-options", markdown(report))


if __name__ == "__main__":
    main()
