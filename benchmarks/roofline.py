"""How much of a GPU's bf16 arithmetic the XL denoiser gets out of it.

    python -m benchmarks.roofline [--batch 16] [--rounds 20] [--peak-tflops 989]

One denoising step of LightningDiT-XL on f16d64 with random weights, as `RPIAE_PRECISION=bf16` and
`RPIAE_COMPILE=auto` serve it. Its multiplications are counted, not estimated; the peak is what the
maker states for dense bf16. Prints a line and writes results/roofline.json. Without a GPU it prints
what a step computes, and how long each GPU of the table would take at its peak. It has not run on a
GPU yet.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.readme import write_report
from models.class_denoiser import ClassDenoiser, ClassDenoiserConfig, class_context
from models.low_precision import lower_precision
from service.backends.compiling import Compiler, find_compiler
from service.backends.static_model import StaticDenoiser
from training.provenance import git_revision, hardware, versions

RESULTS = Path(__file__).parent / "results" / "roofline.json"

# Dense bf16 with float32 sums, from NVIDIA's data sheets, which state twice that where "with
# sparsity" stands. Names as `torch.cuda.get_device_name` has them; the longest that fits counts.
PEAK_TFLOPS = {
    "A100": 312.0,
    "H100": 989.4,  # SXM
    "H100 NVL": 835.5,
    "H100 PCIe": 756.0,
    "H200": 989.4,
    "B200": 2250.0,
    "L4": 121.0,
    "L40": 181.0,
    "L40S": 362.0,
}


@dataclass(frozen=True, kw_only=True)
class Share:
    """A step's multiplications in the time it took, beside the most that the GPU can do."""

    batch: int
    flops: int
    seconds: float
    peak_tflops: float

    @property
    def tflops(self) -> float:
        """Achieved, 10**12 per second; a multiplication with its addition counts as two."""
        return self.flops / self.seconds / 1e12

    @property
    def of_peak(self) -> float:
        """In [0, 1]."""
        return self.tflops / self.peak_tflops


def peak_tflops(gpu: str) -> float | None:
    """Of a GPU by its name; None where the table lacks it."""
    fitting = [name for name in PEAK_TFLOPS if name in gpu]
    return PEAK_TFLOPS[max(fitting, key=len)] if fitting else None


def step_flops(config: ClassDenoiserConfig, batch: int) -> int:
    """Of the matrix products of one step, attention included: counted on tensors without values."""
    with torch.device("meta"):
        model = ClassDenoiser(config).eval().requires_grad_(False)
        x, t = torch.empty(batch, *config.latent_shape), torch.empty(batch)
        labels = torch.empty(batch, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model(x, t, labels)
    return counter.get_total_flops()


def measure(
    config: ClassDenoiserConfig,
    batch: int,
    rounds: int,
    device: torch.device,
    compiler: Compiler,
    settle: Callable[[], None],
) -> float:
    """Median seconds of a step in bf16, compiled and recorded; `settle` waits for the device."""
    with torch.inference_mode():
        model = ClassDenoiser(config).eval().requires_grad_(False)
        lower_precision(model, "bf16", torch.bfloat16)
        denoiser = StaticDenoiser(model.to(device), compiler)
        context = class_context(torch.zeros(batch, dtype=torch.int64, device=device))
        denoiser.prepare(batch, context.select([0]))
        x = torch.randn(batch, *config.latent_shape, device=device)
        t = torch.rand(batch, device=device)
        seconds = []
        for _ in range(rounds):
            settle()
            started = time.perf_counter()
            denoiser.velocity(x, t, context)
            settle()
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def line(share: Share, gpu: str) -> str:
    return (
        f"{gpu}: {1e3 * share.seconds:.2f} ms for a step of batch {share.batch}, "
        f"{share.tflops:.0f} TFLOP/s, {share.of_peak:.0%} of {share.peak_tflops:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--peak-tflops", type=float, help="of a GPU that the table lacks")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    config = ClassDenoiserConfig()
    flops = step_flops(config, arguments.batch)
    print(f"a step of batch {arguments.batch} computes {flops / 1e12:.2f} TFLOP")
    if not torch.cuda.is_available():
        for name, most in PEAK_TFLOPS.items():
            print(f"{name}: {1e3 * flops / most / 1e12:.2f} ms at its peak")
        return
    device = torch.device(arguments.device)
    gpu = torch.cuda.get_device_name(device)
    peak = arguments.peak_tflops or peak_tflops(gpu)
    if peak is None:
        parser.error(f"the table lacks {gpu}: name its dense bf16 peak with --peak-tflops")
    compiler = find_compiler("auto", device, None)
    assert compiler is not None, "a GPU always has one"
    seconds = measure(
        config, arguments.batch, arguments.rounds, device, compiler, torch.cuda.synchronize
    )
    share = Share(batch=arguments.batch, flops=flops, seconds=seconds, peak_tflops=peak)
    print(line(share, gpu))
    report = {
        "revision": git_revision(),
        "hardware": hardware(),
        "versions": versions(),
        "rounds": arguments.rounds,
        "share": asdict(share) | {"tflops": share.tflops, "of_peak": share.of_peak},
    }
    write_report(arguments.results, report)


if __name__ == "__main__":
    main()
