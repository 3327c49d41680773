"""Whether memory stays flat: minutes at 90 % load, the resident size of every process sampled.

    python -m benchmarks.serving_soak [--minutes 10] [--tasks mixed] [--backend torch]

Requests arrive at random at 90 % of the measured capacity. Results are kept for 30 seconds only, so
that Redis reaches its level before the fit begins; the first third of the run is left out of it.
Prints a table, writes results/serving_soak.json, the plot beside it and the section in README.md.
"""

import argparse
import asyncio
import random
import textwrap
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.line_plot import Line, draw_lines
from benchmarks.readme import write_report, write_section
from benchmarks.serving_load import (
    LoadClient,
    Sample,
    percentile,
    plan_requests,
    poisson_arrivals,
    slope,
)
from benchmarks.serving_mixed import MAX_ROWS, STEPS, TASKS, capacity
from benchmarks.serving_processes import Cores, running_service
from models.manifest import read_manifest
from training.provenance import git_revision, hardware, short_revision, versions

RESULTS = Path(__file__).parent / "results" / "serving_soak.json"
LOAD = 0.9
EVERY_S = 5.0
WARM_UP_SHARE = 1 / 3  # of the run, which the fit leaves out
RESULT_TTL_S = 30
MIB = 2**20


def resident_bytes(pid: int) -> int:
    """Memory that a process occupies now."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"process {pid} has no memory: it has ended")


async def sample_memory(pids: Mapping[str, int], rows: list[dict[str, float]]) -> None:
    """One row each EVERY_S seconds, for ever."""
    started = time.monotonic()
    while True:
        sizes = {name: resident_bytes(pid) / MIB for name, pid in pids.items()}
        rows.append({"at_s": time.monotonic() - started, **sizes})
        await asyncio.sleep(started + EVERY_S * len(rows) - time.monotonic())


def fit(rows: Sequence[Mapping[str, float]], name: str) -> dict[str, float]:
    """MiB per hour after the warm-up, half the width of the 95 % interval, and the sizes in MiB."""
    begin_s = WARM_UP_SHARE * rows[-1]["at_s"]
    late = [row for row in rows if row["at_s"] >= begin_s]
    gradient, error = slope([row["at_s"] for row in late], [row[name] for row in late])
    return {
        "mib_per_hour": 3600 * gradient,
        "error": 3600 * error,
        "first_mib": late[0][name],
        "last_mib": late[-1][name],
        "most_mib": max(row[name] for row in rows),
    }


async def load(
    client: LoadClient, per_s: float, seconds: float, tasks: str
) -> tuple[list[Sample], float]:
    """The answers, and the requests per second that arrived."""
    source = random.Random(31)
    times = poisson_arrivals(per_s, seconds, source)
    plan = plan_requests(times, STEPS, TASKS[tasks], source)
    return await client.replay(plan), len(plan) / seconds


def measure(bundle: Path, minutes: float, tasks: str, backend: str) -> dict[str, Any]:
    manifest, cores = read_manifest(bundle), Cores.split()
    rows: list[dict[str, float]] = []
    settings = {"fake_step_s": 0.01} if backend == "fake" else {}
    with running_service(
        bundle,
        cores,
        backend=backend,
        max_rows=MAX_ROWS,
        result_ttl_s=RESULT_TTL_S,
        **settings,
    ) as service:

        async def run() -> tuple[list[Sample], float]:
            most = await capacity(service, manifest, tasks, jobs=6 * MAX_ROWS)
            print(f"capacity {most:.2f}/s", flush=True)
            sampling = asyncio.create_task(sample_memory(service.pids, rows))
            async with LoadClient(service.url, manifest) as client:
                found = await load(client, LOAD * most, 60 * minutes, tasks)
            sampling.cancel()
            return found

        samples, per_s = asyncio.run(run())
    statuses = Counter(str(sample.status) for sample in samples)
    latencies = [sample.latency_s for sample in samples]
    return {
        "bundle": manifest.name,
        "backend": backend,
        "tasks": tasks,
        "minutes": minutes,
        "per_s": per_s,
        "statuses": dict(statuses),
        "median_s": percentile(latencies, 0.5),
        "p99_s": percentile(latencies, 0.99),
        "revision": git_revision(),
        "hardware": hardware(),
        "cores": cores.describe(),
        "versions": versions(),
        "fits": {name: fit(rows, name) for name in service.pids},
        "rows": [{key: round(value, 2) for key, value in row.items()} for row in rows],
    }


def markdown(report: dict[str, Any], plot: str) -> str:
    """What stands in the README; `plot` is the picture's path from there."""
    lines = [
        "| process | slope (95 % interval) | after the warm-up | at the end | most |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in report["fits"].items():
        lines.append(
            f"| {name} | **{found['mib_per_hour']:+.1f}** (±{found['error']:.1f}) MiB/h | "
            f"{found['first_mib']:.1f} MiB | {found['last_mib']:.1f} MiB | "
            f"{found['most_mib']:.1f} MiB |"
        )
    machine, statuses = report["hardware"], report["statuses"]
    errors = sum(count for status, count in statuses.items() if status != "200")
    text = (
        f"{report['minutes']:g} minutes at {report['per_s']:.1f} requests per second, 90 % of the "
        f"capacity: {sum(statuses.values())} {report['tasks']} requests of "
        f"{', '.join(map(str, STEPS))} steps, {errors} errors, median {report['median_s']:.2f} s, "
        f"99th percentile {report['p99_s']:.2f} s. Results were kept for {RESULT_TTL_S} s. Bundle "
        f"`{report['bundle']}`, backend {report['backend']}; {report['cores']}; "
        f"{machine['processor']}, torch {report['versions']['torch']}, revision "
        f"`{short_revision(report['revision'])}`."
    )
    table = "\n".join(lines)
    wrapped = textwrap.fill(text, 100, break_on_hyphens=False)
    return f"{table}\n\n![Resident memory over time]({plot})\n\n{wrapped}"


def lines_of(report: dict[str, Any]) -> list[Line]:
    """For the plot: memory over minutes, a panel for each process."""
    minutes = [row["at_s"] / 60 for row in report["rows"]]
    return [
        Line(title=f"{name}, MiB", x=minutes, y=[row[name] for row in report["rows"]])
        for name in report["fits"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/stickers"))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--tasks", choices=list(TASKS), default="mixed")
    parser.add_argument("--backend", choices=("torch", "fake"), default="torch")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    report = measure(arguments.bundle, arguments.minutes, arguments.tasks, arguments.backend)
    write_report(arguments.output, report)
    plot = arguments.output.with_suffix(".png")
    draw_lines(lines_of(report), "minutes").save(plot, optimize=True)
    text = markdown(report, f"results/{plot.name}")
    print(text)
    if arguments.output == RESULTS:
        write_section("serving-soak", text)


if __name__ == "__main__":
    main()
