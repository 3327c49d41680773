"""What larger batches gain on a GPU: a step of the XL denoiser with 1 to 128 rows.

    python -m benchmarks.gpu_curve [--batches 1 2 4 8 16 32 64 128] [--bundle xl-with-engines]

LightningDiT-XL on f16d64 in bf16: as PyTorch runs it, with compiled blocks, recorded as a CUDA
graph, and both, which is what `RPIAE_COMPILE=auto` serves; random weights, since speed does not
depend on them. With --bundle also the TensorRT engines of a bundle of that size. The knee is the
smallest batch with nearly the best rate: more rows at a time only make each picture wait. Prints a
table and writes results/gpu_curve.json. Without a GPU it measures nothing, and it has not run on
one yet.
"""

import argparse
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.readme import write_report
from models.class_denoiser import ClassDenoiser, ClassDenoiserConfig, class_context
from models.low_precision import lower_precision
from models.manifest import read_manifest
from service.backends.compiling import Compiler, compile_block
from service.backends.cuda_graphs import CudaGraphs
from service.backends.static_batches import Capture, uncaptured
from service.backends.static_model import StaticDenoiser
from training.provenance import git_revision, hardware, short_revision, versions

RESULTS = Path(__file__).parent / "results" / "gpu_curve.json"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
NEARLY = 0.95  # of the best rate
TENSORRT = "TensorRT"
_WARM_UP = 3


def compilers(capture: Capture) -> dict[str, Compiler]:
    """The sides in PyTorch."""

    def leave(_: torch.nn.Module) -> None:
        """A block that runs as it is."""

    return {
        "eager": Compiler(leave, uncaptured),
        "compiled": Compiler(compile_block, uncaptured),
        "CUDA graph": Compiler(leave, capture),
        "compiled, CUDA graph": Compiler(compile_block, capture),
    }


def median_s(run: Callable[[], object], rounds: int, settle: Callable[[], None]) -> float:
    """Median seconds of a call; `settle` waits for the device."""
    seconds = []
    for number in range(_WARM_UP + rounds):
        settle()
        started = time.perf_counter()
        run()
        settle()
        if number >= _WARM_UP:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure(
    config: ClassDenoiserConfig,
    device: torch.device,
    batches: Sequence[int],
    rounds: int,
    sides: Mapping[str, Compiler],
    settle: Callable[[], None],
) -> Iterator[tuple[str, int, float]]:
    """Side, batch and seconds of a step, one after the other."""
    with torch.inference_mode():
        model = ClassDenoiser(config).eval().requires_grad_(False)
        lower_precision(model, "bf16", torch.bfloat16)
        model.to(device)
        for name, compiler in sides.items():
            denoiser = StaticDenoiser(model, compiler)
            for batch in batches:
                context = class_context(torch.zeros(batch, dtype=torch.int64, device=device))
                denoiser.prepare(batch, context.select([0]))
                x = torch.randn(batch, *config.latent_shape, device=device)
                t = torch.rand(batch, device=device)

                def step() -> object:
                    return denoiser.velocity(x, t, context)  # noqa: B023 - runs in this round

                yield name, batch, median_s(step, rounds, settle)


def measure_engines(
    bundle: Path, device: torch.device, batches: Sequence[int], rounds: int
) -> Iterator[tuple[str, int, float]]:
    """The same of a bundle's engines in bf16."""
    from service.backends.tensorrt_backend import TensorRTBackend

    manifest = read_manifest(bundle)
    backend = TensorRTBackend.load(
        bundle, manifest, precision="bf16", device=str(device), max_rows=max(batches)
    )
    for batch in batches:
        times = [backend.measure("velocity", batch).seconds for _ in range(rounds)]
        yield TENSORRT, batch, statistics.median(times)


def knee(seconds: Mapping[int, float]) -> int:
    """The smallest batch with nearly the best rate."""
    rates = {batch: batch / spent for batch, spent in seconds.items()}
    best = max(rates.values())
    return min(batch for batch, rate in rates.items() if rate >= NEARLY * best)


def markdown(report: Mapping[str, Any]) -> str:
    """Milliseconds of a step, rows per second and the gain over one row, by side and batch."""
    found: dict[str, dict[int, float]] = {}
    for side, batch, seconds in report["rows"]:
        found.setdefault(side, {})[batch] = seconds
    lines = [f"| batch | {' | '.join(found)} |", "|---:|" + "---:|" * len(found)]
    for batch in report["batches"]:
        cells = []
        for seconds in found.values():
            rate = batch / seconds[batch]
            gain = rate * seconds[report["batches"][0]] / report["batches"][0]
            cells.append(f"{1e3 * seconds[batch]:.2f} ms, {rate:.0f}/s, **{gain:.2f}**")
        lines.append(f"| {batch} | {' | '.join(cells)} |")
    knees = ", ".join(f"{knee(seconds)} ({side})" for side, seconds in found.items())
    machine = report["hardware"]
    text = (
        f"Milliseconds of a step, rows per second, and those as multiples of the first line's; "
        f"medians of {report['rounds']}. Knees: {knees}. {machine.get('gpu', 'no GPU')}, torch "
        f"{report['versions']['torch']}, revision `{short_revision(report['revision'])}`. "
        "`python -m benchmarks.gpu_curve`"
    )
    return "\n".join(lines) + "\n\n" + textwrap.fill(text, 100, break_on_hyphens=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=20, help="steps of each batch and side")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--bundle", type=Path, help="with TensorRT engines of the XL denoiser")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured")
        return
    device = torch.device(arguments.device)
    batches = sorted(set(arguments.batches))
    sides = compilers(CudaGraphs(device))
    sources = [
        measure(
            ClassDenoiserConfig(), device, batches, arguments.rounds, sides, torch.cuda.synchronize
        )
    ]
    if arguments.bundle is not None:
        sources.append(measure_engines(arguments.bundle, device, batches, arguments.rounds))
    rows = []
    for source in sources:
        for row in source:
            print(f"{row[0]:24} {row[1]:4} rows  {1e3 * row[2]:9.2f} ms", flush=True)
            rows.append(row)
    report = {
        "revision": git_revision(),
        "hardware": hardware(),
        "versions": versions(),
        "batches": batches,
        "rounds": arguments.rounds,
        "rows": rows,
    }
    write_report(arguments.output, report)
    print(markdown(report))


if __name__ == "__main__":
    main()
