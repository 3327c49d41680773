"""What the comparison with other servers says, as it stands in the README."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from benchmarks.peers.measures import SLO_FACTOR, median_of
from benchmarks.peers.verdicts import (
    CLIENTS,
    Report,
    loads_of,
    measures,
    mib,
    most_memory,
    of_load,
    per_s,
    ready,
    seconds,
    share,
    verdicts,
)
from benchmarks.readme import paragraph
from training.comparison.plot import Panel, draw_plot
from training.provenance import short_revision

DEVICES = {
    "cpu": "On the `{bundle}` model, one thread",
    "emulated": "On an emulated device without a model (20 ms for a step and 0.2 ms for each row), "
    "which stands for a GPU: its steps cost nearly the same with more rows",
    "null": "On a device that does nothing: what is left is what serving costs",
}


# The measures of each panel, of which the first is shown that compares servers, and its digits.
_PANELS = (
    (tuple(f"answers, {load} of capacity" for load in ("1.2", "1", "0.8")), 1),
    (("99th percentile, 0.8 of capacity",), 2),
    (("in time, 1 of capacity",), 2),
    (("99th percentile, bearable",), 2),
)
_PANELS_WITHOUT_ARRIVALS = (
    (("median, 1 client",), 4),
    (tuple(f"answers, {number} clients" for number in (8, 32)), 0),
)
_UNITS = {"answers": "answers/s", "99th percentile": "p99 s", "median": "median s"}


def costs_table(report: Report) -> str:
    """A line for each server: what it bears and what it takes."""
    clients = loads_of(report, CLIENTS)
    lines = [
        f"| server | saturated | of the engine alone | median, {clients[0]} | computing time of an "
        "answer | memory | ready |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for server, capacity in report["capacities"].items():
        one = of_load("saturated", clients[0], "p50_s")(report, server)
        cpu = of_load("saturated", clients[-1], "cpu_s_per_answer")(report, server)
        cells = (
            per_s(capacity),
            share(capacity / report["offline"]["per_s"]),
            _spread(one, seconds),
            _spread(cpu, seconds),
            _spread(most_memory(report, server), mib),
            _spread(ready(report, server), seconds),
        )
        lines.append(f"| {server} | {' | '.join(cells)} |")
    return "\n".join(lines)


def clients_table(report: Report) -> str:
    """Answers in a second by the number of clients, and of encode and decode alone."""
    loads = [*loads_of(report, CLIENTS), *loads_of(report, "raw"), *loads_of(report, "json")]
    lines = [
        "| server, answers in a second | " + " | ".join(loads) + " |",
        "|---|" + "---:|" * len(loads),
    ]
    for server in report["capacities"]:
        cells = []
        for load in loads:
            values = of_load("saturated", load, "per_s")(report, server)
            cells.append(per_s(median_of([{"v": v} for v in values], "v")) if values else "")
        lines.append(f"| {server} | {' | '.join(cells)} |")
    return "\n".join(lines)


def arrivals_table(report: Report) -> str:
    """A line for each load and server that was sent it."""
    lines = [
        "| load | server | answers | median | 95th | 99th percentile | in time | given up |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for load, rate in report["rates"].items():
        for server, runs in report["arrived"].items():
            found = [run["loads"][load] for run in runs if load in run["loads"]]
            if not found:
                continue
            cells = [_spread([one["per_s"] for one in found], per_s)]
            cells += [
                _spread([one[key] for one in found], seconds) for key in ("p50_s", "p95_s", "p99_s")
            ]
            cells.append(_spread([one["slo"] for one in found], share))
            cells.append(str(sum(one["given_up"] for one in found) or ""))
            lines.append(f"| {load}, {per_s(rate)} | {server} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    """Median, and the lowest and highest where there are several."""
    middle = show(median_of([{"v": value} for value in values], "v"))
    if len(values) == 1:
        return middle
    return f"{middle} ({show(min(values))} to {show(max(values))})"


def _loads(report: Report) -> Iterator[Mapping[str, Any]]:
    """What was found of every load."""
    for phase in ("saturated", "arrived"):
        for runs in report[phase].values():
            for run in runs:
                yield from run["loads"].values()


def circumstances(report: Report) -> str:
    """How the figures were measured."""
    scale, machine = report["scale"], report["hardware"]
    settings = "; ".join(
        f"{name} " + ", ".join(f"{key} {value}" for key, value in chosen.items())
        for name, chosen in report["settings"].items()
        if chosen
    )
    loads = list(_loads(report))
    failed = sum(load["failed"] for load in loads)
    late_s = max(load["late_p99_s"] for load in loads)
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return paragraph(
        f"{DEVICES[report['device']].format(bundle=report['bundle'])}. 70 % generations, 20 % "
        f"edits, 5 % each of encode and decode, 10, 25 or 50 steps, at most 16 model rows at a "
        f"time; every server on all cores with one thread for the model, beside the load "
        f"generator. Closed loops of {scale['closed_s']:g} s, arrivals of {scale['open_s']:g} s "
        f"from `peers/{report['arrivals']}`, the first {scale['warm_s']:g} s not counted; in time: "
        f"within {SLO_FACTOR:g} times what the picture takes the engine alone. Requests without an "
        f"answer {scale['grace_s']:g} s after the end were given up and count with the time until "
        f"then; requests were sent at most {1000 * late_s:.0f} ms late (99th percentile). "
        f"A server that bears less than half of a load was not sent it. "
        f"{scale['repeats']} repeats in turns, medians (lowest to highest), {failed} requests "
        f"failed; pictures differ from the service's by at most "
        f"{max(report['differences'].values())} of 255. Settings: {settings}. "
        f"{machine['processor']}, {machine['cores']} cores; {versions}; revision "
        f"`{short_revision(report['revision'])}`. Command: `{report['command']}`"
    )


def markdown(report: Report, plot: str) -> str:
    """What stands in the README; `plot` is the picture's path from there."""
    parts = [costs_table(report), clients_table(report)]
    if report["rates"]:
        parts.append(arrivals_table(report))
    parts += [f"![Servers side by side]({plot})", verdicts(report), circumstances(report)]
    return "\n\n".join(parts)


def panels(report: Report) -> list[Panel]:
    """Of the main measures, a row for each server and a dot for each repeat."""
    found = {measure.name: measure for measure in measures(report)}
    chosen = []
    for names, digits in _PANELS if report["rates"] else _PANELS_WITHOUT_ARRIVALS:
        rows_of = {
            name: {one: found[name].values(report, one) for one in report["capacities"]}
            for name in names
            if name in found
        }
        if rows_of:
            # A heavy load may have been sent to one server only.
            name = max(rows_of, key=lambda name: sum(map(bool, rows_of[name].values())) > 1)
            what, comma, load = name.partition(",")
            title = f"{_UNITS.get(what, what)}{comma}{load}"
            chosen.append(Panel(title=title, digits=digits, rows=rows_of[name], from_zero=True))
    return chosen


def draw(report: Report) -> Image.Image:
    """The panels side by side."""
    return draw_plot(panels(report))
