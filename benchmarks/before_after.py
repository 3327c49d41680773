"""What profiling found, and what came of it: an earlier revision beside the working tree.

    python -m benchmarks.before_after [--before 6802efa] [--rounds 4]

Both trees are measured by these benchmarks, in turns, on private servers: what a job costs Redis
while many workers wait for one (benchmarks/idle_workers.py), the engine without a server, and the
service on a device that does nothing, as the comparison with other servers has them. Needs git,
and the earlier revision in its history. Prints tables, writes results/before_after.json and the
section in README.md.
"""

import argparse
import asyncio
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.idle_workers import NUM_IDLE, measure_idle
from benchmarks.peers import offline
from benchmarks.peers.loads import Bench, Scale
from benchmarks.peers.processes import OURS
from benchmarks.peers.tuning import Device
from benchmarks.peers.verdicts import per_s, seconds
from benchmarks.readme import paragraph, write_report, write_section
from service.jobs.embedded import EmbeddedRedis, bound_to_parent
from training.provenance import git_revision, hardware, short_revision, versions

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "before_after.json"
BUNDLE = Path("bundles/stickers")
BEFORE = "6802efa"
SCALE = Scale(clients=(1, 8), closed_s=3.0, warm_s=0.5, coding_s=2.0)
IDLE_S = 2.0
ENGINE: Mapping[Device, tuple[str, int]] = {
    "null": ("engine alone, device that does nothing", 600),
    "cpu": ("engine alone, model on the CPU", 60),
}  # what it is called, and pictures

Values = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A cost, where it was seen, what was changed. gains: the measures that tell of it, and the
    words that follow their values.
    """

    cost: str
    seen: str
    change: str
    gains: tuple[tuple[str, str], ...]


FINDINGS = (
    Finding(
        cost="a new job woke all workers that waited; all but one looked for nothing",
        seen="the simulation: 73 % of Redis's thread with a thousand workers",
        change="a job calls one of them, who has most free rows",
        gains=(
            ("scripts of a job, 40 workers wait", "scripts of a job while 40 wait"),
            ("Redis for a job, 40 workers wait", "of Redis"),
        ),
    ),
    Finding(
        cost="latents in JSON were written number by number",
        seen="a profile of the gateway: 6 ms of an answer",
        change="orjson writes the array, as the shortest numbers that read back the same",
        gains=(("answers, encode json", "encoded to JSON"),),
    ),
    Finding(
        cost="dozens of small tensors between two calls of the model, and a device that does "
        "nothing, but slept for 0 s",
        seen="a profile of the engine on that device: the sleep half of a step, tensors a third",
        change="one tensor has all numbers of a step, and plans keep theirs; no sleep",
        gains=((ENGINE["null"][0], "by the engine alone, model excepted"),),
    ),
    Finding(
        cost="each step woke the worker's loop, which took the interpreter from the model",
        seen="counting: 28 times for a picture",
        change="steps are told of together; at once only where a job ends or leaves room",
        gains=(("computing time of an answer, 8 clients", "of computing for an answer"),),
    ),
    Finding(
        cost="locks of the Redis client around each command, and threads for small files",
        seen="a profile of a command: 16 of 57 µs",
        change="a pool that locks where no connection is free; what is small is read at once",
        gains=(("median, 1 client", "for a request"), ("answers, encode raw", "encoded raw")),
    ),
)


def _count(value: float) -> str:
    return f"{value:.1f}"


def _microseconds(value: float) -> str:
    return f"{value:.0f} µs"


SHOW: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("scripts", _count),
    ("Redis", _microseconds),
    ("computing time", seconds),
    ("median", seconds),
    ("", per_s),
)  # by how a measure's name begins


def probe(bundle: Path) -> dict[str, float]:
    """All measures of the tree that this process runs in.

    Raises:
        RuntimeError: the service's code is another tree's.
    """
    import service

    if not Path(service.__path__[0]).resolve().is_relative_to(Path.cwd().resolve()):
        raise RuntimeError(f"the service comes from {service.__path__[0]}, not from {Path.cwd()}")
    found: dict[str, float] = {}
    with EmbeddedRedis() as redis:
        for number in NUM_IDLE:
            cost = asyncio.run(measure_idle(redis.url, number, IDLE_S))
            found[f"scripts of a job, {number} workers wait"] = cost.scripts
            found[f"Redis for a job, {number} workers wait"] = cost.thread_us
            found[f"jobs one at a time, {number} workers wait"] = cost.jobs_per_s
    for device, (name, pictures) in ENGINE.items():
        found[name] = offline.measure(device, bundle, pictures)["per_s"]
    bench = Bench(bundle, "null", SCALE, None, {}, {})
    loads = bench.run(OURS, bench.saturating(OURS))["loads"]
    for name, load in loads.items():
        if name == "1 client":
            found["median, 1 client"] = load["p50_s"]
        else:
            found[f"answers, {name}"] = load["per_s"]
    found["computing time of an answer, 8 clients"] = loads["8 clients"]["cpu_s_per_answer"]
    return found


def earlier_tree(revision: str, folder: Path) -> str:
    """Put a revision's source, with these benchmarks, into an empty folder; returns its name.

    Raises:
        SystemExit: git does not know it.
    """
    git = ("git", "-C", str(ROOT))
    try:
        full = subprocess.run(
            [*git, "rev-parse", f"{revision}^{{commit}}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        archive = subprocess.run([*git, "archive", full], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"needs git, and revision {revision} in its history") from error
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    shutil.rmtree(folder / "benchmarks")
    without = shutil.ignore_patterns("results", "__pycache__")
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=without)
    return full


def run_probe(tree: Path, bundle: Path) -> Values:
    """What `probe` finds in a tree, by a process that runs there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = ["-m", "benchmarks.before_after", "--bundle", str(bundle), "--probe", file.name]
        subprocess.run(
            bound_to_parent([sys.executable, *command]), cwd=tree, env=environment, check=True
        )
        found: Values = json.loads(Path(file.name).read_text(encoding="utf-8"))
        return found


def measure(before: str, rounds: int, bundle: Path) -> dict[str, Any]:
    """The report: both trees in turns, each of them first as often as the other."""
    found: dict[str, list[Values]] = {"before": [], "after": []}
    with tempfile.TemporaryDirectory(prefix="rpiae-before-") as folder:
        revision = earlier_tree(before, Path(folder))
        trees = {"before": Path(folder), "after": ROOT}
        for number in range(rounds):
            for name in sorted(trees, reverse=number % 2 == 0):
                print(f"== round {number + 1}, {name}", flush=True)
                found[name].append(run_probe(trees[name], bundle))
    return {
        "before": revision,
        "revision": git_revision(),
        "hardware": hardware(),
        "versions": versions(),
        "idle_s": IDLE_S,
        "closed_s": SCALE.closed_s,
        "coding_s": SCALE.coding_s,
        "found": found,
    }


def _shown(measure: str, value: float) -> str:
    show = next(show for start, show in SHOW if measure.startswith(start))
    return show(value)


def _median(runs: Sequence[Values], measure: str) -> str:
    return _shown(measure, statistics.median(run[measure] for run in runs))


def _spread(runs: Sequence[Values], measure: str) -> str:
    low, high = (_shown(measure, of(run[measure] for run in runs)) for of in (min, max))
    return f"{_median(runs, measure)} ({low} to {high})" if len(runs) > 1 else low


def markdown(report: Mapping[str, Any]) -> str:
    """What stands in the README."""
    before, after = report["found"]["before"], report["found"]["after"]
    lines = ["| cost | seen in | change | before | after |", "|---|---|---|---|---|"]
    for one in FINDINGS:
        cells = [
            ", ".join(f"**{_median(runs, name)}** {words}" for name, words in one.gains)
            for runs in (before, after)
        ]
        lines.append(f"| {one.cost} | {one.seen} | {one.change} | {' | '.join(cells)} |")
    lines += ["", "| measure | before | after | after / before |", "|---|---:|---:|---:|"]
    for name in after[0]:
        ratio = statistics.median(
            new[name] / old[name] for old, new in zip(before, after, strict=True)
        )
        lines.append(f"| {name} | {_spread(before, name)} | {_spread(after, name)} | {ratio:.2f} |")
    machine = report["hardware"]
    text = (
        f"Before: revision `{short_revision(report['before'])}`, after: "
        f"`{short_revision(report['revision'])}`; {len(after)} rounds in turns, medians (lowest to "
        f"highest), and the median of the rounds' ratios. While workers wait, jobs come one at a "
        f"time for {report['idle_s']:g} s, and the looks of those who wait are in the figures. "
        f"Clients, and encode and decode with 8 of them, on the device that does nothing of the "
        f"comparison with other servers. "
        f"{machine['processor']}, {machine['cores']} cores. "
        f"Command: `python -m benchmarks.before_after`"
    )
    return "\n".join(lines) + "\n\n" + paragraph(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default=BEFORE, help="the earlier revision")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--probe", type=Path, help="write the measures of this tree there")
    arguments = parser.parse_args()
    if arguments.probe is not None:
        arguments.probe.write_text(json.dumps(probe(arguments.bundle)), encoding="utf-8")
        return
    report = measure(arguments.before, arguments.rounds, arguments.bundle.resolve())
    write_report(arguments.output, report)
    text = markdown(report)
    print(text)
    if arguments.output == RESULTS:
        write_section("before-after", text)


if __name__ == "__main__":
    main()
