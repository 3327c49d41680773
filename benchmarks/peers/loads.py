"""The loads of the comparison with other servers, and one server under them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.arrivals import at_rate, balanced_plan, read_arrivals
from benchmarks.peers.client import RAW_SERVERS, Client
from benchmarks.peers.measures import summary
from benchmarks.peers.processes import Server, running_server
from benchmarks.peers.tuning import Device
from benchmarks.serving_load import Planned, Sample
from models.manifest import Manifest, read_manifest

ALIKE = 1  # of 255: how far a picture may be from the service's own
WARM_UP = Planned(at_s=0, task="generate", steps=10, seed=790)
CODING_CLIENTS = 8


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured: numbers of clients, shares of the capacity, seconds of each load.

    bearable: also at a share of what the best of the other servers can do; grace: for how long
    answers are waited for after a load; coding: seconds of encode and decode alone, 0 leaves them
    out.
    """

    clients: tuple[int, ...] = (1, 8, 32)
    loads: tuple[float, ...] = (0.5, 0.8, 1.0, 1.2)
    bearable: bool = True
    closed_s: float = 6.0
    closed_grace_s: float = 5.0
    open_s: float = 12.0
    warm_s: float = 1.5
    grace_s: float = 5.0
    coding_s: float = 3.0
    repeats: int = 3

    def on(self, device: Device) -> "Scale":
        """Without what tells nothing on a device."""
        match device:
            case "null":  # it has no capacity, but that of the machine
                return replace(self, loads=(), bearable=False)
            case "emulated":  # encode and decode take as long as on the null device
                return replace(self, coding_s=0.0)
        return self


SHORT = Scale(
    clients=(1, 32), loads=(0.8,), bearable=False, closed_s=5, open_s=8, coding_s=0, repeats=1
)
FULL = Scale(clients=(1, 2, 4, 8, 16, 32, 64), closed_s=10, open_s=30)


@dataclass(frozen=True, kw_only=True)
class Load:
    """Requests to one server: `clients` send one after the other; with None each has its time."""

    name: str
    plan: Sequence[Planned]
    seconds: float
    warm_s: float
    grace_s: float
    clients: int | None = None
    raw: bool = True

    async def run(
        self, server: Server, manifest: Manifest, solo_s: Mapping[str, float] | None
    ) -> dict[str, Any]:
        """Its summary, with the computing time and memory of the server's processes."""
        before = server.tree.cpu_s()
        async with Client(server, manifest, raw=self.raw) as client:
            samples: list[Sample]
            if self.clients is None:
                samples = await client.open_loop(self.plan, self.seconds, self.grace_s)
            else:
                samples = await client.closed_loop(
                    self.plan, self.clients, self.seconds, self.grace_s
                )
        pictures = any(one.planned.task in ("generate", "edit") for one in samples)
        found = summary(samples, self.seconds, self.warm_s, solo_s if pictures else None)
        answered = sum(one.status == 200 for one in samples)
        found["cpu_s_per_answer"] = (server.tree.cpu_s() - before) / max(answered, 1)
        found["memory_bytes"] = server.tree.memory_bytes()
        return found


@dataclass
class Bench:
    """One device's measurement. solo_s: what pictures take alone; None if nobody asks for it."""

    bundle: Path
    device: Device
    scale: Scale
    solo_s: Mapping[str, float] | None
    reference: dict[str, NDArray[np.uint8]]
    differences: dict[str, int]

    def run(self, name: str, loads: Sequence[Load]) -> dict[str, Any]:
        """A server's summaries by load, and the seconds until it was ready."""
        manifest = read_manifest(self.bundle)
        waiting, found, ready_s = list(loads), {}, []
        while waiting:
            with running_server(name, self.device, self.bundle) as server:
                ready_s.append(asyncio.run(self.prepare(server, manifest)))
                while waiting:
                    load = waiting.pop(0)
                    one = asyncio.run(load.run(server, manifest, self.solo_s))
                    found[load.name] = one
                    print(f"{name}, {load.name}: {shown(one)}", flush=True)
                    if one["given_up"]:
                        break  # what it still works at would burden the next load
        return {"ready_s": ready_s[0], "loads": found}

    async def prepare(self, server: Server, manifest: Manifest) -> float:
        """Seconds until it was ready; then its pictures are compared and it is warmed up."""
        async with Client(server, manifest) as client:
            ready_s = await client.wait_until_ready()
            for task in ("generate", "edit"):
                planned = replace(WARM_UP, task=task)
                pixels = await client.picture(planned)
                expected = self.reference.setdefault(task, pixels)
                far = int(np.abs(pixels.astype(int) - expected.astype(int)).max())
                if far > ALIKE:
                    raise RuntimeError(f"{server.name}: a {task} picture differs by {far} of 255")
                known = self.differences.get(server.name, 0)
                self.differences[server.name] = max(far, known)
            await client.closed_loop([WARM_UP], 8, 2 * self.scale.warm_s, self.scale.grace_s)
        return ready_s

    def saturating(self, name: str) -> list[Load]:
        """Closed loops, of encode and decode alone and of the mix, the most clients last."""
        scale, plan = self.scale, balanced_plan()
        loads = []
        for task in ("encode", "decode") if scale.coding_s else ():
            alone = [replace(one, task=task) for one in plan]
            for raw in (True, False) if name in RAW_SERVERS else (False,):
                loads.append(
                    Load(
                        name=f"{task} {'raw' if raw else 'json'}",
                        plan=alone,
                        seconds=scale.coding_s,
                        warm_s=scale.coding_s / 6,
                        grace_s=scale.closed_grace_s,
                        clients=CODING_CLIENTS,
                        raw=raw,
                    )
                )
        return loads + [
            Load(
                name=f"{number} client{'s' if number > 1 else ''}",
                plan=plan,
                seconds=scale.closed_s,
                warm_s=scale.warm_s,
                grace_s=scale.closed_grace_s,
                clients=number,
            )
            for number in scale.clients
        ]

    def arriving(self, rates: Mapping[str, float]) -> list[Load]:
        """Open loops at these rates, the heaviest last."""
        scale, arrivals = self.scale, read_arrivals()
        return [
            Load(
                name=name,
                plan=at_rate(arrivals, per_s, scale.open_s),
                seconds=scale.open_s,
                warm_s=scale.warm_s,
                grace_s=scale.grace_s,
            )
            for name, per_s in sorted(rates.items(), key=lambda item: item[1])
        ]


def shown(found: Mapping[str, Any]) -> str:
    """A load's outcome in one line."""
    slo = f", SLO {found['slo']:.0%}" if "slo" in found else ""
    return (
        f"{found['per_s']:.1f}/s, p50 {found['p50_s']:.3f} s, p99 {found['p99_s']:.3f} s{slo}, "
        f"{found['given_up']} of {found['requests']} given up, {found['failed']} failed"
    )
