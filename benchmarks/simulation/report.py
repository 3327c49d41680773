"""Tables of the simulation for README.md."""

from collections.abc import Mapping
from typing import Any

from benchmarks.readme import paragraph
from benchmarks.simulation.scenarios import BUSY
from training.provenance import short_revision

TOLERANCE = 0.15  # of the real percentile, by which the simulated one may be off


def deviations(report: Mapping[str, Any]) -> list[float]:
    """Of all simulated percentiles from the real ones, as shares of those."""
    return [
        run["simulated"][name] / run["real"][name] - 1
        for run in report["runs"]
        for name in run["real"]
    ]


def validation_markdown(report: Mapping[str, Any]) -> str:
    """Real and simulated percentiles side by side."""
    lines = [
        "| workers | load | requests | real p50, p95, p99 | simulated | off by |",
        "|---:|---|---:|---|---|---|",
    ]
    for run in report["runs"]:
        off = [run["simulated"][name] / real - 1 for name, real in run["real"].items()]
        cells = [
            ", ".join(f"{value:.2f}" for value in run[k].values()) for k in ("real", "simulated")
        ]
        lines.append(
            f"| {run['workers']} | {run['load']:.0%}, {run['per_s']:.1f}/s | {run['requests']} | "
            f"{cells[0]} s | {cells[1]} s | {', '.join(f'{share:+.0%}' for share in off)} |"
        )
    worst = max(map(abs, deviations(report)))
    inside = sum(abs(share) <= TOLERANCE for share in deviations(report))
    found = report["calibration"]
    ticks = ", ".join(f"{1000 * seconds:.1f} ms ({rows})" for rows, seconds in found["ticks"])
    text = (
        f"{inside} of {len(deviations(report))} percentiles are within {TOLERANCE:.0%}, the worst "
        f"is off by {worst:.0%}. Found out beforehand: ticks of {ticks} by rows, "
        f"{1000 * (found['gateway']['before'] + found['gateway']['after']):.2f} ms of the gateway "
        f"for a request, {1000 * found['react_s']:.2f} ms of the worker's loop for each message; "
        f"Redis's costs are those above. Runs of {report['seconds']:g} s, "
        f"{_circumstances(report)}. `python -m benchmarks.simulate --validate`"
    )
    return _page(lines, text)


def scale_markdown(report: Mapping[str, Any], plot: str) -> str:
    """Growth, what relieves Redis, deaths and autoscaling."""
    parts = [
        _growth(report),
        _relief(report),
        _deaths(report["deaths"]),
        f"{_rush(report)}\n\n![Workers over time]({plot})",
        paragraph(_scale_circumstances(report)),
    ]
    return "\n\n".join(parts)


def _scale_circumstances(report: Mapping[str, Any]) -> str:
    steps, hop_us = ", ".join(map(str, report["steps"])), 1e6 * report["costs"]["hop_s"]
    return (
        f"{report['seconds']:g} s of arrivals in each run of the first two tables, or a million "
        f"requests; pictures of {steps} steps; one way between two machines {hop_us:.0f} µs, "
        f"assumed; {report['redis']} and gateway as measured above; {_circumstances(report)}. "
        "`python -m benchmarks.simulate`"
    )


def _growth(report: Mapping[str, Any]) -> str:
    lines = [
        "| device | workers | requests/h | gateways | queues | p50 | p99 | wait p99 | Redis busy | "
        "of it calling idle workers | computed in |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["growth"]:
        redis = f"{row['busy']['redis']:.0%}"
        lines.append(
            f"| {row['device']} | {row['workers']} | {3600 * row['per_s']:,.0f} | "
            f"{row['gateways']} | {row['shards']} | {row['p50_s']:.2f} s | {row['p99_s']:.2f} s | "
            f"{1000 * row['wait_p99_s']:,.0f} ms | "
            f"{f'**{redis}**' if row['busy']['redis'] > BUSY else redis} | "
            f"{row['redis_s']['calls']:.0%} | {row['wall_s']:.0f} s |"
        )
    enough = {}
    for row in report["growth"]:
        if row["shards"] == 1 and row["busy"]["redis"] <= BUSY:
            enough[row["device"]] = row["workers"]
    bears = " and ".join(f"{count} of `{name}`" for name, count in enough.items())
    devices = "; ".join(
        f"`{device['name']}` has {device['max_rows']} rows and steps of "
        f"{1000 * device['step_s'][0][1]:.0f} ms for one to {1000 * device['step_s'][-1][1]:.0f} "
        "ms for all"
        for device in report["devices"]
    )
    text = (
        f"Each worker has 80 % of what it bears (the last ones a million requests an hour among "
        f"a thousand). {devices}. Queues: services of their own, each on its own Redis, over which "
        f"workers and gateways are spread evenly; tried where one is busy for over {BUSY:.0%}. One "
        f"Redis was enough for {bears} workers."
    )
    return _page(lines, text)


def _relief(report: Mapping[str, Any]) -> str:
    lines = [
        "| a thousand workers, a million requests an hour | wait p50 | wait p99 | Redis busy | "
        "jobs | calling | progress | signs of life, idle readings |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["relief"]:
        parts = row["redis_s"]
        rest = parts["signs of life"] + parts["idle readings"] + parts["lists"]
        lines.append(
            f"| {row['change']} | {1000 * row['wait_p50_s']:,.0f} ms | "
            f"{1000 * row['wait_p99_s']:,.0f} ms | **{row['busy']['redis']:.0%}** | "
            f"{parts['jobs']:.0%} | {parts['calls']:.0%} | {parts['progress']:.0%} | {rest:.0%} |"
        )
    return "\n".join(lines)


def _deaths(found: Mapping[str, Any]) -> str:
    lines = ["| requests | number | p50 | p99 |", "|---|---:|---:|---:|"]
    for name, row in found["periods"].items():
        cells = f"{row['requests']} | {row['p50_s']:.1f} s | {row['p99_s']:.1f} s"
        lines.append(f"| {name} | {cells} |")
    lost = found["requests"] - found["answered"]
    text = (
        f"{found['killed']} of {found['workers']} workers of device `large` die at once at 70 % "
        f"load; leases of {found['lease_s']:g} s, new workers after {found['start_s']:g} s. "
        f"{found['redelivered']} jobs were redelivered, {lost} of {found['requests']} lost."
    )
    return _page(lines, text)


def _rush(report: Mapping[str, Any]) -> str:
    lines = [
        "| autoscaling | most workers | most waiting | waits over 1 s end after | p50 | p99 | "
        "worker hours |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["rush"]:
        lines.append(
            f"| {row['policy']} | {row['most_workers']} | {row['most_waiting']} | "
            f"{row['late_s']:.0f} s | {row['p50_s']:.2f} s | {row['p99_s']:.1f} s | "
            f"{row['worker_hours']:.1f} |"
        )
    text = (
        "From 3 to 60 requests per second for 20 of 60 minutes, device `fast`, one worker at "
        "first; p50 and p99 are those of the rush."
    )
    return _page(lines, text)


def _circumstances(report: Mapping[str, Any]) -> str:
    machine = report["hardware"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, revision "
        f"`{short_revision(report['revision'])}`"
    )


def _page(lines: list[str], text: str) -> str:
    return "\n".join(lines) + "\n\n" + paragraph(text)
