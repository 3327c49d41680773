"""The service against what a user would pick instead, on the same model, device and requests.

    python -m benchmarks.serving_peers [--short | --full] [--devices null emulated] [--repeats 3]
    python -m benchmarks.serving_peers --redraw      tables and plots again, from results/

The others (benchmarks/peers/) are a plain FastAPI endpoint with a lock, FastAPI with a thread pool,
LitServe, BentoML and Ray Serve, with the same backend behind a pipeline that runs batches of
requests; `make peers` installs them in .venv-peers. The device `cpu` is the stickers model with one
thread, `emulated` stands for a GPU, `null` does nothing: what is left is what serving costs.

First every server is saturated by closed loops of clients. The highest rate of all of them is the
capacity. Then the requests of one committed file (peers/arrivals.csv) arrive at shares of it,
Poisson, tasks and steps mixed, latency from the planned time; `bearable` is 0.8 of what the best of
the other servers can do. Servers take turns, each started anew in each repeat. Which of two is
ahead the text says by these numbers. Writes results/serving_peers_<device>.json, the plot beside it
and the section in README.md; a single repeat or fewer servers, runs/benchmarks/ instead.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from benchmarks.peers.arrivals import PATH
from benchmarks.peers.loads import FULL, SHORT, Bench, Scale
from benchmarks.peers.measures import median_of
from benchmarks.peers.processes import LOGS, OURS, PYTHON, SERVERS
from benchmarks.peers.tuning import Device, tuned
from benchmarks.peers.verdicts import CLIENTS
from benchmarks.readme import write_report, write_section
from benchmarks.serving_peers_table import draw, markdown
from models.manifest import read_manifest
from training.provenance import git_revision, hardware, versions

RESULTS = Path(__file__).parent / "results"
BEARABLE = "bearable"


def saturated_rate(runs: Sequence[Mapping[str, Any]]) -> float:
    """The highest of a server's closed loops, of medians over the repeats."""
    loads = [name for name in runs[0]["loads"] if name.endswith(CLIENTS)]
    return max(median_of([run["loads"][name] for run in runs], "per_s") for name in loads)


def rates_of(capacities: Mapping[str, float], scale: Scale) -> dict[str, float]:
    """Requests in a second by load, for shares of the best server's capacity and `bearable`."""
    best = max(capacities.values())
    rates = {f"{share:g} of capacity": share * best for share in scale.loads}
    others = [rate for name, rate in capacities.items() if name != OURS]
    if scale.bearable and others and max(others) < best:
        rates[BEARABLE] = 0.8 * max(others)
    return rates


def offline(device: Device, bundle: Path) -> dict[str, Any]:
    """What the bare engine does on the device."""
    command = [sys.executable, "-m", "benchmarks.peers.offline", "--device", device]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [*command, "--bundle", str(bundle)], env=environment, capture_output=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(bundle: Path, device: Device, scale: Scale, servers: Sequence[str]) -> dict[str, Any]:
    """The report of one device."""
    alone = offline(device, bundle)
    print(f"the engine alone: {alone['per_s']:.1f}/s", flush=True)
    bench = Bench(bundle, device, scale, alone["solo_s"], {}, {})
    saturated: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    for _ in range(scale.repeats):
        for name in servers:
            saturated[name].append(bench.run(name, bench.saturating(name)))
    capacities = {name: saturated_rate(runs) for name, runs in saturated.items()}
    rates = rates_of(capacities, scale)
    arrived: dict[str, list[dict[str, Any]]] = {name: [] for name in servers}
    for _ in range(scale.repeats):
        for name in servers:
            # With less than half of what is sent it only falls behind, the longer the more.
            able = {load: rate for load, rate in rates.items() if 2 * capacities[name] >= rate}
            if able:
                arrived[name].append(bench.run(name, bench.arriving(able)))
    return {
        "bundle": read_manifest(bundle).name,
        "device": device,
        "command": " ".join(["python -m benchmarks.serving_peers", *sys.argv[1:]]),
        "arrivals": PATH.name,
        "scale": asdict(scale),
        "settings": {name: tuned(name, device) for name in servers if name != OURS},
        "revision": git_revision(),
        "hardware": hardware(),
        "versions": {**versions(), **peer_versions()},
        "offline": alone,
        "differences": bench.differences,
        "capacities": capacities,
        "rates": rates,
        "saturated": saturated,
        "arrived": arrived,
    }


def peer_versions() -> dict[str, str]:
    """Of the other servers."""
    (place,) = PYTHON.parents[1].glob("lib/python*/site-packages")
    names = ("fastapi", "litserve", "bentoml", "ray")
    return {
        name: found.version
        for name in names
        for found in metadata.distributions(path=[str(place)], name=name)
    }


def run_device(bundle: Path, device: Device, scale: Scale, servers: Sequence[str]) -> None:
    """Measure and write one device's report; into results/ and README.md if it is a whole one."""
    report = measure(bundle, device, scale.on(device), servers)
    published = scale.repeats > 1 and list(servers) == list(SERVERS)
    path = (RESULTS if published else LOGS) / f"serving_peers_{device}.json"
    write_report(path, report)
    show(report, path, published=published)


def show(report: Mapping[str, Any], path: Path, *, published: bool) -> None:
    """Print what a report says and plot it beside its file; also into README.md if published."""
    draw(report).save(path.with_suffix(".png"), optimize=True)
    text = markdown(report, f"results/{path.stem}.png")
    print(text)
    if published:
        write_section(path.stem.replace("_", "-"), text)


def main() -> None:
    devices = get_args(Device)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/stickers"))
    parser.add_argument("--devices", nargs="+", choices=devices, help="default: all; short: no cpu")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--short", action="store_true", help="one repeat of two loads")
    sizes.add_argument("--full", action="store_true", help="1 to 64 clients, longer loads")
    parser.add_argument("--repeats", type=int, help="other than the size's own")
    parser.add_argument("--redraw", action="store_true", help="show what results/ holds once more")
    arguments = parser.parse_args()
    if arguments.redraw:
        for device in arguments.devices or devices:
            path = RESULTS / f"serving_peers_{device}.json"
            if path.exists():
                show(json.loads(path.read_text(encoding="utf-8")), path, published=True)
        return
    scale = SHORT if arguments.short else FULL if arguments.full else Scale()
    if arguments.repeats is not None:
        scale = replace(scale, repeats=arguments.repeats)
    for device in arguments.devices or [
        one for one in devices if not arguments.short or one != "cpu"
    ]:
        run_device(arguments.bundle, device, scale, arguments.servers)


if __name__ == "__main__":
    main()
