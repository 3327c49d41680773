"""A thousand workers on paper: the service as a discrete-event model with measured costs.

    python -m benchmarks.simulate --validate [--seconds 60]   beside a real service
    python -m benchmarks.simulate [--seconds 300]             at sizes that no machine here has

The first starts a service of one gateway and one and two workers on an emulated device, measures
what its parts cost, replays the same requests on it and in the model, and compares percentiles of
the latency. The second takes those costs, and Redis's from results/job_queue.json, up to a thousand
workers and a million requests an hour: what saturates, what sharing the queue out would change,
what ten dead workers cost, and what the autoscaler of deploy/k8s does in a rush. Prints tables,
writes results/simulation_validation.json or results/simulation.json and the section in README.md.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import job_queue
from benchmarks.line_plot import Line, draw_lines
from benchmarks.readme import write_report, write_section
from benchmarks.simulation.costs import Costs
from benchmarks.simulation.report import scale_markdown, validation_markdown
from benchmarks.simulation.scaling import Policy
from benchmarks.simulation.scenarios import (
    FAST,
    LARGE,
    STEPS,
    deaths,
    growth,
    in_data_centre,
    relief,
    rush,
)
from benchmarks.simulation.validation import validate
from training.provenance import git_revision, hardware, versions

RESULTS = Path(__file__).parent / "results"
VALIDATION = RESULTS / "simulation_validation.json"
SCALE = RESULTS / "simulation.json"
POLICIES = {
    "as deployed": Policy(),
    "room for 16, 8 at a time": Policy(max_workers=16, up_workers=8),
}


def read_report(path: Path, command: str) -> dict[str, Any]:
    """What another command measured.

    Raises:
        SystemExit: it has not run yet.
    """
    if not path.exists():
        raise SystemExit(f"{path} is missing: run python -m {command} first")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def queue_costs(report: Mapping[str, Any]) -> tuple[str, dict[str, dict[str, float]]]:
    """The newest Redis of a queue report, and what its commands cost."""
    version = max(report["costs"])
    return version, report["costs"][version]


def _circumstances() -> dict[str, Any]:
    return {"revision": git_revision(), "hardware": hardware(), "versions": versions()}


def run_validation(bundle: Path, queue_report: Path, seconds: float) -> dict[str, Any]:
    """The comparison with a real service."""
    version, found = queue_costs(read_report(queue_report, "benchmarks.job_queue"))
    redis_us = {name: cost["thread_us"] for name, cost in found.items()}
    gateway_s = {
        "end": 1e-6 * found["wake"]["caller_us"],
        "list_worker": 1e-6 * found["list_worker"]["caller_us"],
    }
    where = _circumstances()  # before this process moves to some of the cores
    report = validate(bundle, redis_us, gateway_s, seconds)
    return {**where, "redis": version, "redis_us": redis_us, **report}


def run_scale(validation: Path, seconds: float) -> dict[str, Any]:
    """Everything beyond one machine."""
    measured = read_report(validation, "benchmarks.simulate --validate")
    costs = in_data_centre(Costs.from_report(measured["redis_us"], measured["calibration"]))
    return {
        **_circumstances(),
        "redis": measured["redis"],
        "costs": asdict(costs),
        "devices": [asdict(device) for device in (FAST, LARGE)],
        "steps": STEPS,
        "seconds": seconds,
        "growth": growth(costs, seconds),
        "relief": relief(costs, seconds),
        "deaths": deaths(costs),
        "rush": rush(costs, POLICIES),
    }


def _scaling_plot(report: Mapping[str, Any], path: Path) -> None:
    """Workers over time, for each policy of the rush."""
    lines = []
    for row in report["rush"]:
        x: list[float] = []
        y: list[float] = []
        for at_s, number in row["history"]:
            x += [at_s / 60, at_s / 60]
            y += [y[-1] if y else number, number]
        lines.append(Line(title=f"workers wanted, {row['policy']}", x=[*x, 60.0], y=[*y, y[-1]]))
    draw_lines(lines, "minutes").save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--validate", action="store_true", help="compare with a real service")
    parser.add_argument("--seconds", type=float, help="of arrivals in each run")
    parser.add_argument("--bundle", type=Path, default=Path("bundles/stickers"))
    parser.add_argument("--queue", type=Path, default=job_queue.RESULTS, help="Redis's costs")
    parser.add_argument("--validation", type=Path, default=VALIDATION, help="the service's costs")
    parser.add_argument("--output", type=Path, help="elsewhere than results/, README unchanged")
    arguments = parser.parse_args()
    if arguments.validate:
        report = run_validation(arguments.bundle, arguments.queue, arguments.seconds or 60)
        path, text = arguments.output or VALIDATION, validation_markdown(report)
    else:
        report = run_scale(arguments.validation, arguments.seconds or 300)
        path = arguments.output or SCALE
        text = scale_markdown(report, f"results/{SCALE.with_suffix('.png').name}")
    write_report(path, report)
    if not arguments.validate:
        _scaling_plot(report, path.with_suffix(".png"))
    print(text)
    if arguments.output is None:
        write_section("simulation-validation" if arguments.validate else "simulation", text)


if __name__ == "__main__":
    main()
