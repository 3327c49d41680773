"""Who is ahead in what, by the numbers of a comparison with other servers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from benchmarks.peers.measures import median_of
from benchmarks.peers.processes import OURS
from benchmarks.readme import paragraph

Report: TypeAlias = Mapping[str, Any]

ALIKE = 0.05
CLIENTS = (" client", " clients")  # how the names of closed loops end

# Why the service costs more than a server without a queue, where it does.
REASONS = {
    "latency": "a job is written to Redis, taken from there by the worker and its picture written "
    "back, so that none is lost with a process; the others hold requests in memory",
    "computing time": "a gateway, Redis and a worker share what the others do in one or two "
    "processes",
    "arrivals": "what an answer takes beside the model (first table) comes from the same cores",
    "tail": "pictures of many steps share the device with all that come after them, which is why "
    "the others are answered early; a batch by requests makes those wait, and runs undisturbed",
    "lists": "in JSON its latents are lists of numbers, with mean and log-variance, as a client "
    "without a tensor library wants them; the others send one file in base64",
    "memory": "gateway and worker are processes with an interpreter each; Redis keeps results",
    "time to ready": "Redis, worker and gateway start, and the worker measures the device first",
}


@dataclass(frozen=True)
class Measure:
    """One figure of each server. values: of a server in each repeat, none where it was not
    measured.
    """

    name: str
    better: Literal["higher", "lower"]
    show: Callable[[float], str]
    values: Callable[[Report, str], list[float]]
    reason: str = ""


def per_s(value: float) -> str:
    return f"{value:.3g}/s" if value < 1000 else f"{value:.0f}/s"


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{1000 * value:.1f} ms"


def share(value: float) -> str:
    return f"{value:.0%}"


def mib(value: float) -> str:
    return f"{value / 2**20:.0f} MiB"


def of_load(phase: str, load: str, key: str) -> Callable[[Report, str], list[float]]:
    return lambda report, server: [
        run["loads"][load][key] for run in report[phase].get(server, []) if load in run["loads"]
    ]


def most_memory(report: Report, server: str) -> list[float]:
    return [
        max(load["memory_bytes"] for load in run["loads"].values())
        for run in report["saturated"][server]
    ]


def ready(report: Report, server: str) -> list[float]:
    return [run["ready_s"] for run in report["saturated"][server]]


def loads_of(report: Report, suffix: str | tuple[str, ...]) -> list[str]:
    """Names of the closed loops that end so, in the order of the measurement."""
    found: dict[str, None] = {}
    for runs in report["saturated"].values():
        found |= dict.fromkeys(name for name in runs[0]["loads"] if name.endswith(suffix))
    return list(found)


def measures(report: Report) -> list[Measure]:
    """What the servers are compared in."""
    clients = loads_of(report, CLIENTS)
    alone = of_load("saturated", clients[0], "p50_s")
    found = [Measure(f"median, {clients[0]}", "lower", seconds, alone, "latency")]
    for load in clients[1:]:
        values = of_load("saturated", load, "per_s")
        found.append(Measure(f"answers, {load}", "higher", per_s, values, "computing time"))
    for load in report["rates"]:
        found += _at_a_rate(load)
    for kind, reason in (("raw", "computing time"), ("json", "lists")):
        for load in loads_of(report, kind):
            values = of_load("saturated", load, "per_s")
            found.append(Measure(f"answers, {load}", "higher", per_s, values, reason))
    cpu = of_load("saturated", clients[-1], "cpu_s_per_answer")
    return [
        *found,
        Measure("computing time of an answer", "lower", seconds, cpu, "computing time"),
        Measure("memory", "lower", mib, most_memory, "memory"),
        Measure("time to ready", "lower", seconds, ready, "time to ready"),
    ]


def _at_a_rate(load: str) -> list[Measure]:
    rows: tuple[tuple[str, Literal["higher", "lower"], Callable[[float], str], str, str], ...] = (
        ("answers", "higher", per_s, "per_s", "arrivals"),
        ("median", "lower", seconds, "p50_s", "arrivals"),
        ("99th percentile", "lower", seconds, "p99_s", "tail"),
        ("in time", "higher", share, "slo", "arrivals"),
    )
    return [
        Measure(f"{name}, {load}", better, show, of_load("arrived", load, key), reason)
        for name, better, show, key, reason in rows
    ]


@dataclass(frozen=True)
class Verdict:
    """The service against the best of the others in one measure. gain: how many times as good."""

    measure: Measure
    ours: float
    best: float
    server: str
    gain: float
    outcome: Literal["ahead", "behind", "even"]

    def __str__(self) -> str:
        show = self.measure.show
        text = f"{self.measure.name}: {show(self.ours)}, {self.server} {show(self.best)}"
        if show is share:
            return f"{text} ({100 * (self.ours - self.best):+.0f} points)"
        return f"{text} ({self.gain:.2f} times as good)"


def judge(report: Report, measure: Measure) -> Verdict | None:
    """Who is ahead; even where the repeats overlap or the medians are within ALIKE of each other.

    None if the others or we were not measured.
    """
    sign = 1 if measure.better == "higher" else -1
    values = {server: measure.values(report, server) for server in report["capacities"]}
    medians = {
        server: median_of([{"value": value} for value in found], "value")
        for server, found in values.items()
        if found
    }
    others = {server: value for server, value in medians.items() if server != OURS}
    if OURS not in medians or not others:
        return None
    server = max(others, key=lambda name: sign * others[name])
    mine, theirs = ([sign * value for value in values[name]] for name in (OURS, server))
    ours, best = medians[OURS], others[server]
    larger, smaller = (ours, best) if sign > 0 else (best, ours)
    gain = larger / smaller if smaller else float("inf")
    outcome: Literal["ahead", "behind", "even"] = "even"
    if min(mine) > max(theirs) and gain > 1 + ALIKE:
        outcome = "ahead"
    elif max(mine) < min(theirs) and gain < 1 - ALIKE:
        outcome = "behind"
    return Verdict(measure, ours, best, server, gain, outcome)


def verdicts(report: Report) -> str:
    """Lists of what the service is ahead in, even in and behind in, and why."""
    found = [one for measure in measures(report) if (one := judge(report, measure)) is not None]
    parts = []
    for outcome, title in (
        ("ahead", "The service is ahead of the best of the others in"),
        ("even", "No difference beyond 5 % and the spread of the repeats in"),
        ("behind", "**Another server is ahead of the service** in"),
    ):
        chosen = [one for one in found if one.outcome == outcome]
        if not chosen:
            continue
        lines = [f"- {one}" for one in chosen]
        if outcome == "behind":
            reasons = dict.fromkeys(one.measure.reason for one in chosen if one.measure.reason)
            lines += [paragraph(f"Why, {reason}: {REASONS[reason]}.") for reason in reasons]
        parts.append(f"{title}:\n\n" + "\n".join(_separated(lines)))
    return "\n\n".join(parts)


def _separated(lines: Sequence[str]) -> list[str]:
    """Paragraphs after a list need an empty line before them."""
    return [line if line.startswith("-") else f"\n{line}" for line in lines]
