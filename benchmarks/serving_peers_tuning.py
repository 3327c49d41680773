"""Tries the settings of the other servers that serving_peers measures, and tells the best.

    python -m benchmarks.serving_peers_tuning [--servers litserve bentoml]

On the emulated device, under the mixed requests: the rate of 32 clients, and the median latency of
Poisson arrivals at a rate that all servers with batches bear. The best has the highest rate; of
those within 5 % of it, the lowest latency. Writes results/serving_peers_tuning.json, where the
earlier trials of servers that are not asked for stay, and the section in README.md;
benchmarks/peers/tuning.py has the trials and the choice.
"""

import argparse
import asyncio
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.arrivals import at_rate, balanced_plan, read_arrivals
from benchmarks.peers.loads import Bench, Load, Scale, shown
from benchmarks.peers.processes import MODULES, running_server
from benchmarks.peers.tuning import beyond, trials
from benchmarks.readme import write_report, write_section
from models.manifest import read_manifest
from training.provenance import git_revision, hardware, short_revision, versions

RESULTS = Path(__file__).parent / "results" / "serving_peers_tuning.json"
CLIENTS = 32
PER_S = 4.0
SCALE = Scale(closed_s=9, closed_grace_s=0.5, open_s=10)
NEARLY = 0.95


def try_settings(bundle: Path, server: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the rate and the latency that they gave."""
    manifest, arrivals = read_manifest(bundle), read_arrivals()
    bench = Bench(bundle, "emulated", SCALE, {}, {}, {})
    loads = (
        Load(
            name="arrivals",
            plan=at_rate(arrivals, PER_S, SCALE.open_s),
            seconds=SCALE.open_s,
            warm_s=SCALE.warm_s,
            grace_s=SCALE.grace_s,
        ),
        Load(
            name="clients",
            plan=balanced_plan(),
            seconds=SCALE.closed_s,
            warm_s=SCALE.warm_s,
            grace_s=SCALE.closed_grace_s,
            clients=CLIENTS,
        ),
    )
    found: dict[str, Any] = {"settings": dict(settings)}
    with running_server(server, "emulated", bundle, dict(settings)) as running:
        asyncio.run(bench.prepare(running, manifest))
        for load in loads:
            found[load.name] = asyncio.run(load.run(running, manifest, None))
            print(f"{server} {settings}, {load.name}: {shown(found[load.name])}", flush=True)
    return found


def best(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings of the best of a server's trials, without those that sort requests."""
    found = [one for one in found if "by_steps" not in one["settings"]]
    most = max(one["clients"]["per_s"] for one in found)
    fast = [one for one in found if one["clients"]["per_s"] >= NEARLY * most]
    chosen: dict[str, Any] = min(fast, key=lambda one: one["arrivals"]["p50_s"])["settings"]
    return chosen


def markdown(report: Mapping[str, Any]) -> str:
    """What stands in the README."""
    lines = ["| server | settings | saturated | median latency |", "|---|---|---:|---:|"]
    for server, found in report["trials"].items():
        chosen = best(found)
        for one in found:
            settings = ", ".join(f"{key} {value}" for key, value in one["settings"].items())
            if one["settings"] == chosen:
                settings = f"**{settings}**"
            lines.append(
                f"| {server} | {settings} | {one['clients']['per_s']:.1f}/s | "
                f"{one['arrivals']['p50_s']:.2f} s |"
            )
    machine = report["hardware"]
    text = (
        f"Emulated device; {CLIENTS} clients for {SCALE.closed_s:g} s, and {PER_S:g} arrivals in "
        f"a second for {SCALE.open_s:g} s. {machine['processor']}, {machine['cores']} cores; "
        f"revision `{short_revision(report['revision'])}`. "
        f"Command: `python -m benchmarks.serving_peers_tuning`"
    )
    return "\n".join(lines) + "\n\n" + textwrap.fill(text, 100, break_on_hyphens=False)


def main() -> None:
    tunable = [name for name in MODULES if len(trials(name)) > 1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/stickers"))
    parser.add_argument("--servers", nargs="+", choices=tunable, default=tunable)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    trials_of = {
        server: [
            try_settings(arguments.bundle, server, one)
            for one in (*trials(server), *beyond(server))
        ]
        for server in arguments.servers
    }
    if arguments.output.exists():
        earlier = json.loads(arguments.output.read_text(encoding="utf-8"))["trials"]
        trials_of = earlier | trials_of
    report = {
        "revision": git_revision(),
        "hardware": hardware(),
        "versions": versions(),
        "trials": trials_of,
    }
    write_report(arguments.output, report)
    text = markdown(report)
    print(text)
    if arguments.output == RESULTS:
        write_section("serving-peers-tuning", text)


if __name__ == "__main__":
    main()
