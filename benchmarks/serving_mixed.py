"""Latency under mixed load: batching by steps against batching by requests, on the same engine.

    python -m benchmarks.serving_mixed [--seconds 60] [--repeats 3] [--device cpu] [--tasks mixed]

Jobs of 10, 25 and 50 steps arrive at random (Poisson) at 80 % of the capacity that the service has
with them. Every policy of serving_worker.py gets the same arrivals, in turns; latency counts from
the planned time of a request. `--device emulated` stands for a GPU: no model, but steps that take
20 ms and hardly more with more rows. Where request-level batching cannot keep up with that load,
its queue grows as long as the run lasts; then there is a second load, 80 % of its own capacity.
Prints a table, writes results/serving_mixed_<device>.json, the plot beside it and the section in
README.md.
"""

import argparse
import asyncio
import random
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.readme import write_report, write_section
from benchmarks.serving_load import (
    GENERATE_ONLY,
    MIXED_TASKS,
    LoadClient,
    Planned,
    Sample,
    percentile,
    plan_requests,
    poisson_arrivals,
    write_plan,
)
from benchmarks.serving_processes import Cores, RunningService, running_service
from benchmarks.serving_worker import POLICIES
from models.manifest import Manifest, read_manifest
from training.comparison.plot import Panel, draw_plot
from training.provenance import git_revision, hardware, short_revision, versions

RESULTS = Path(__file__).parent / "results"
STEPS = (10, 25, 50)
LOAD = 0.8
MAX_ROWS = 16
DEVICES: dict[str, tuple[str, ...]] = {
    "cpu": (),
    "emulated": ("--step-s", "0.02", "--row-s", "0.0002"),
}
LABELS = {"request-level-early": "early answers"}  # in the plot, where room is short
TASKS = {"generate": GENERATE_ONLY, "mixed": MIXED_TASKS}


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """Of one run: latencies in seconds, how late the client was, answers that are no success."""
    latencies = [sample.latency_s for sample in samples]
    return {
        "requests": len(samples),
        "mean_s": statistics.mean(latencies),
        "median_s": statistics.median(latencies),
        "p99_s": percentile(latencies, 0.99),
        "late_p99_s": percentile([sample.late_s for sample in samples], 0.99),
        "failures": sum(sample.status != 200 for sample in samples),
    }


async def capacity(service: RunningService, manifest: Manifest, tasks: str, jobs: int) -> float:
    """Requests per second when some always wait."""
    plan = plan_requests([0.0] * jobs, STEPS, TASKS[tasks], random.Random(21))
    async with LoadClient(service.url, manifest) as client:
        await client.saturate(plan[:MAX_ROWS], at_a_time=MAX_ROWS)
        return jobs / await client.saturate(plan, at_a_time=4 * MAX_ROWS)


def bearable(capacities: Mapping[str, float]) -> list[str]:
    """Policies whose capacity the loads are shares of: ours, and the other's if it is far below."""
    ours, other, *_ = capacities
    return [ours, other] if capacities[other] < LOAD * capacities[ours] else [ours]


async def run_plan(
    service: RunningService, manifest: Manifest, plan: Sequence[Planned]
) -> dict[str, Any]:
    async with LoadClient(service.url, manifest) as client:
        return summary(await client.replay(plan))


def measure(
    bundle: Path, device: str, tasks: str, seconds: float, repeats: int, policies: Sequence[str]
) -> dict[str, Any]:
    """All policies at both loads, in turns."""
    manifest, cores = read_manifest(bundle), Cores.split()
    with ExitStack() as stack:
        services = {
            policy: stack.enter_context(
                running_service(
                    bundle,
                    cores,
                    worker_program=(
                        *("-m", "benchmarks.serving_worker", "--policy", policy),
                        *DEVICES[device],
                    ),
                    max_rows=MAX_ROWS,
                )
            )
            for policy in policies
        }
        capacities = {
            policy: asyncio.run(capacity(service, manifest, tasks, jobs=6 * MAX_ROWS))
            for policy, service in services.items()
        }
        print("capacity: " + ", ".join(f"{k} {v:.2f}/s" for k, v in capacities.items()))
        loads = []
        for of in bearable(capacities):
            rate = LOAD * capacities[of]
            runs: dict[str, list[dict[str, Any]]] = {policy: [] for policy in policies}
            for repeat in range(repeats):
                source = random.Random(100 + repeat)
                times = poisson_arrivals(rate, seconds, source)
                plan = plan_requests(times, STEPS, TASKS[tasks], source, 800 * repeat)
                write_plan(Path("runs/benchmarks/serving_mixed") / f"{of}-{repeat}.json", plan)
                for policy, service in services.items():
                    found = asyncio.run(run_plan(service, manifest, plan))
                    runs[policy].append(found)
                    print(f"80 % of {of}, {policy}: {found}", flush=True)
            loads.append({"of": of, "per_s": rate, "runs": runs})
    return {
        "bundle": manifest.name,
        "device": device,
        "tasks": tasks,
        "steps": STEPS,
        "seconds": seconds,
        "max_rows": MAX_ROWS,
        "revision": git_revision(),
        "hardware": hardware(),
        "cores": cores.describe(),
        "versions": versions(),
        "capacities": capacities,
        "loads": loads,
    }


def ratios(runs: dict[str, list[dict[str, Any]]], policy: str, key: str) -> list[float]:
    """How many times as long as with continuous batching, in each repeat."""
    return [
        other[key] / ours[key] for other, ours in zip(runs[policy], runs[POLICIES[0]], strict=True)
    ]


def table(report: dict[str, Any]) -> str:
    """A line for each load and policy."""
    lines = [
        "| load | batching | mean | 99th percentile | mean, times ours | 99th, times ours |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for load in report["loads"]:
        for policy, runs in load["runs"].items():
            cells = [
                f"{statistics.median(run[key] for run in runs):.2f} s"
                for key in ("mean_s", "p99_s")
            ]
            for key in ("mean_s", "p99_s"):
                found = ratios(load["runs"], policy, key)
                cells.append(
                    ""
                    if policy == POLICIES[0]
                    else f"**{statistics.median(found):.2f}** "
                    f"({min(found):.2f} to {max(found):.2f})"
                )
            place = f"{load['per_s']:.1f}/s, 80 % of {load['of']}"
            lines.append(f"| {place} | {policy} | {' | '.join(cells)} |")
    return "\n".join(lines)


def circumstances(report: dict[str, Any]) -> str:
    """How the figures were measured."""
    machine = report["hardware"]
    device = (
        f"the `{report['bundle']}` model on the worker's core"
        if report["device"] == "cpu"
        else "an emulated device without a model (20 ms for a step and 0.2 ms for each row), which "
        "stands for a GPU: its steps cost nearly the same with more rows"
    )
    number = len(report["loads"][0]["runs"][POLICIES[0]])
    failures = sum(
        run["failures"]
        for load in report["loads"]
        for runs in load["runs"].values()
        for run in runs
    )
    capacities = ", ".join(f"{name} {rate:.1f}/s" for name, rate in report["capacities"].items())
    return textwrap.fill(
        f"On {device}; {report['tasks']} requests of {', '.join(map(str, report['steps']))} steps, "
        f"at most {report['max_rows']} model rows; {number} runs of {report['seconds']:g} s in "
        f"turns, medians (lowest to highest), {failures} requests failed. Capacity: {capacities}. "
        f"{report['cores']}; {machine['processor']}, torch {report['versions']['torch']}, "
        f"revision `{short_revision(report['revision'])}`.",
        100,
        break_on_hyphens=False,
    )


def markdown(report: dict[str, Any], plot: str) -> str:
    """What stands in the README; `plot` is the picture's path from there."""
    return f"{table(report)}\n\n![Latency by policy]({plot})\n\n{circumstances(report)}"


def panels(report: dict[str, Any]) -> list[Panel]:
    """For the plot: mean and 99th percentile at each load, a dot for each run."""
    return [
        Panel(
            title=f"{title}, 80 % of {load['of']}",
            digits=2,
            rows={
                LABELS.get(policy, policy): [run[key] for run in runs]
                for policy, runs in load["runs"].items()
            },
        )
        for load in report["loads"]
        for key, title in (("mean_s", "mean s"), ("p99_s", "p99 s"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/stickers"))
    parser.add_argument("--device", choices=list(DEVICES), default="cpu")
    parser.add_argument("--tasks", choices=list(TASKS), default="generate")
    parser.add_argument("--seconds", type=float, default=60, help="of arrivals in each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--output", type=Path, help="elsewhere than results/, README unchanged")
    arguments = parser.parse_args()
    report = measure(
        arguments.bundle,
        arguments.device,
        arguments.tasks,
        arguments.seconds,
        arguments.repeats,
        arguments.policies,
    )
    name = f"serving_mixed_{arguments.device}"
    path = arguments.output or RESULTS / f"{name}.json"
    write_report(path, report)
    plot = path.with_suffix(".png")
    draw_plot(panels(report)).save(plot, optimize=True)
    text = markdown(report, f"results/{plot.name}")
    print(text)
    if arguments.output is None:
        write_section(name.replace("_", "-"), text)


if __name__ == "__main__":
    main()
