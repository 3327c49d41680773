"""All benchmarks, one after the other, in one session on one machine.

    python -m benchmarks [--full] [--only job_queue simulate]

The short form takes about 15 minutes on two quiet cores; `--full` has the sizes of the
committed tables and takes hours. Each benchmark is a command of its own, which is printed; it
writes its report to results/ and its table to README.md (the comparison with other servers in the
short form only to runs/benchmarks/). One that fails does not stop the others, but the exit status
says so.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".venv-peers" / "bin" / "python"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One command.

    short, full: its options; short None: it has no short form. needs, how: a file without which it
    is left out, and what makes it.
    """

    name: str
    module: str
    short: tuple[str, ...] | None
    full: tuple[str, ...] = ()
    needs: Path | None = None
    how: str = ""

    def command(self, *, full: bool) -> list[str]:
        """The interpreter's arguments.

        Raises:
            ValueError: it has no such form.
        """
        options = self.full if full else self.short
        if options is None:
            raise ValueError(f"{self.name} has no short form: use --full")
        return ["-m", f"benchmarks.{self.module}", *options]


@dataclass(frozen=True)
class Outcome:
    """How one ended: `ok`, `failed (status)` or why it was left out, and its seconds."""

    name: str
    ending: str
    seconds: float


_MIXED = ("--policies", "continuous", "request-level", "--repeats", "1", "--seconds", "6")

# The queue's costs go into the validation, and what that finds out into the simulation.
BENCHMARKS = (
    Benchmark(
        name="job_queue",
        module="job_queue",
        short=("--jobs", "640", "--rounds", "300", "--seconds", "1.5"),
    ),
    Benchmark(
        name="simulate_validate",
        module="simulate",
        short=("--validate", "--seconds", "6"),
        full=("--validate",),
    ),
    Benchmark(
        name="simulate", module="simulate", short=("--seconds", "60"), full=("--seconds", "3600")
    ),
    Benchmark(name="serving", module="serving", short=()),
    Benchmark(
        name="serving_efficiency",
        module="serving_efficiency",
        short=("--pictures", "32", "--rounds", "2"),
    ),
    Benchmark(
        name="serving_mixed_emulated",
        module="serving_mixed",
        short=("--device", "emulated", *_MIXED),
        full=("--device", "emulated"),
    ),
    Benchmark(name="serving_mixed_cpu", module="serving_mixed", short=_MIXED),
    Benchmark(
        name="serving_peers",
        module="serving_peers",
        short=("--short", "--devices", "emulated"),
        full=("--full",),
        needs=PEERS,
        how="make peers",
    ),
    Benchmark(
        name="serving_peers_tuning",
        module="serving_peers_tuning",
        short=None,
        needs=PEERS,
        how="make peers",
    ),
    Benchmark(name="serving_soak", module="serving_soak", short=None),
    Benchmark(name="before_after", module="before_after", short=None),
    Benchmark(name="samplers", module="samplers", short=("--prompts", "4")),
    Benchmark(name="tokenizer", module="tokenizer", short=("--rounds", "1", "--batches", "1")),
    Benchmark(name="backends", module="backends", short=("--rounds", "3", "--prompts", "12")),
    Benchmark(name="onnx_options", module="onnx_options", short=("--repeats", "6")),
    Benchmark(name="training", module="training", short=("--rounds", "3")),
    Benchmark(name="gpu_curve", module="gpu_curve", short=("--batches", "1", "8", "64")),
    Benchmark(name="roofline", module="roofline", short=()),
)


def chosen(names: Sequence[str] | None, *, full: bool) -> list[Benchmark]:
    """Those of these names, or all that have the form.

    Raises:
        ValueError: there is no benchmark of a name; lists those that there are.
    """
    if names is None:
        return [one for one in BENCHMARKS if full or one.short is not None]
    known = {one.name: one for one in BENCHMARKS}
    for name in names:
        if name not in known:
            raise ValueError(f"unknown benchmark {name!r}, expected some of {', '.join(known)}")
    return [known[name] for name in names]


def run_one(benchmark: Benchmark, *, full: bool) -> Outcome:
    """Run it to its end, with its output on ours."""
    if benchmark.needs is not None and not benchmark.needs.exists():
        where = benchmark.needs.relative_to(ROOT)
        return Outcome(benchmark.name, f"left out: {where} is missing, {benchmark.how}", 0.0)
    command = benchmark.command(full=full)
    print(f"\n== {benchmark.name}: python {' '.join(command)}", flush=True)
    started = time.perf_counter()
    status = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    ending = "ok" if status == 0 else f"failed ({status})"
    return Outcome(benchmark.name, ending, time.perf_counter() - started)


def run_all(benchmarks: Sequence[Benchmark], *, full: bool) -> list[Outcome]:
    """One after the other; prints how each ended."""
    outcomes = []
    for benchmark in benchmarks:
        outcome = run_one(benchmark, full=full)
        print(f"== {outcome.name}: {outcome.ending}, {outcome.seconds:.0f} s", flush=True)
        outcomes.append(outcome)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--full", action="store_true", help="as large as the committed tables")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these, in this order")
    arguments = parser.parse_args()
    try:
        benchmarks = chosen(arguments.only, full=arguments.full)
        for benchmark in benchmarks:
            benchmark.command(full=arguments.full)
    except ValueError as error:
        parser.error(str(error))
    outcomes = run_all(benchmarks, full=arguments.full)
    print(f"\n{'benchmark':24} {'seconds':>8}  ending")
    for outcome in outcomes:
        print(f"{outcome.name:24} {outcome.seconds:8.0f}  {outcome.ending}")
    print(f"{'in all':24} {sum(outcome.seconds for outcome in outcomes):8.0f}")
    sys.exit(any(outcome.ending.startswith("failed") for outcome in outcomes))


if __name__ == "__main__":
    main()
