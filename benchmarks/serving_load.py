"""Load on a service over HTTP, and what is reckoned from its answers.

Requests are planned before they are sent: when, what, with which seed. An open-loop replay sends
each at its time whatever the service does, and counts its latency from that time, so that a
request which the client itself could not send in time is not forgiven (no coordinated omission).
"""

import asyncio
import io
import json
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self, TypeAlias

import httpx
import numpy as np
import safetensors.numpy
from PIL import Image

from models.manifest import Manifest

Task: TypeAlias = Literal["generate", "edit", "encode", "decode"]

GENERATE_ONLY: Mapping[Task, float] = {"generate": 1.0}
MIXED_TASKS: Mapping[Task, float] = {"generate": 0.7, "edit": 0.2, "encode": 0.05, "decode": 0.05}
REQUEST_TIMEOUT_S = 600.0

_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "gray")
_SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A request: seconds after the start, what, with how many steps, from which seed."""

    at_s: float
    task: Task
    steps: int
    seed: int

    @property
    def prompt(self) -> str:
        """Words that the stickers model knows; another prompt for each seed, of 800."""
        rest, shape = divmod(self.seed, len(_SHAPES))
        colour, ground = rest % len(_COLOURS), rest // len(_COLOURS) % len(_COLOURS)
        return f"a {_COLOURS[colour]} {_SHAPES[shape]} on a {_COLOURS[ground]} background"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An answer. latency_s: from the planned time to the last byte; late_s: part of it before the
    request was sent; status 0: the connection broke.
    """

    planned: Planned
    latency_s: float
    late_s: float
    status: int


def poisson_arrivals(per_s: float, seconds: float, source: random.Random) -> list[float]:
    """Times in [0, seconds) with exponential gaps, ascending."""
    times: list[float] = []
    at_s = source.expovariate(per_s)
    while at_s < seconds:
        times.append(at_s)
        at_s += source.expovariate(per_s)
    return times


def plan_requests(
    times: Sequence[float],
    steps: Sequence[int],
    tasks: Mapping[Task, float],
    source: random.Random,
    first_seed: int = 0,
) -> list[Planned]:
    """One request for each time, its steps and task drawn at random."""
    names, shares = list(tasks), list(tasks.values())
    return [
        Planned(
            at_s=at_s,
            task=source.choices(names, shares)[0],
            steps=source.choice(steps),
            seed=first_seed + index,
        )
        for index, at_s in enumerate(times)
    ]


def write_plan(path: Path, plan: Sequence[Planned]) -> None:
    """Keep a plan, so that others can replay the same arrivals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps(asdict(one)) for one in plan]
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")


def read_plan(path: Path) -> list[Planned]:
    """A plan that `write_plan` wrote."""
    return [Planned(**fields) for fields in json.loads(path.read_text(encoding="utf-8"))]


class LoadClient:
    """Sends planned requests to one service.

    Args:
        url: of the gateway.
        manifest: of the model that it serves; sources and latents have its shapes.
    """

    def __init__(self, url: str, manifest: Manifest) -> None:
        height, width = manifest.image_size
        picture = Image.new("RGB", (width, height), "orange")
        file = io.BytesIO()
        picture.save(file, "PNG")
        self._png = file.getvalue()
        latents = np.zeros((1, *manifest.latent_shape), np.float32)
        self._latents = safetensors.numpy.save({"latents": latents})
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=REQUEST_TIMEOUT_S,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def send(self, planned: Planned, started: float) -> Sample:
        """Send now; `started` is when the plan began, by time.perf_counter."""
        due = started + planned.at_s
        sent = time.perf_counter()
        try:
            answer = await self._post(planned)
            status = answer.status_code
        except httpx.TransportError:
            status = 0
        return Sample(
            planned=planned,
            latency_s=time.perf_counter() - due,
            late_s=sent - due,
            status=status,
        )

    async def replay(self, plan: Sequence[Planned]) -> list[Sample]:
        """Send each request at its time; ends with the last answer."""
        started = time.perf_counter()

        async def one(planned: Planned) -> Sample:
            await asyncio.sleep(started + planned.at_s - time.perf_counter())
            return await self.send(planned, started)

        return list(await asyncio.gather(*(one(planned) for planned in plan)))

    async def saturate(self, plan: Sequence[Planned], at_a_time: int) -> float:
        """Seconds until all are answered when so many are always under way.

        Raises:
            RuntimeError: a request failed: the time would say nothing.
        """
        room = asyncio.Semaphore(at_a_time)
        started = time.perf_counter()

        async def one(planned: Planned) -> int:
            async with room:
                return (await self.send(planned, started)).status

        statuses = Counter(await asyncio.gather(*(one(planned) for planned in plan)))
        elapsed_s = time.perf_counter() - started
        if set(statuses) != {httpx.codes.OK}:
            raise RuntimeError(f"answers by status: {dict(statuses)}")
        return elapsed_s

    async def floor_s(self, number: int) -> float:
        """Median seconds of a request that asks nothing of the queue: client, HTTP and gateway."""
        times = []
        for _ in range(number):
            started = time.perf_counter()
            (await self._http.get("/healthz")).raise_for_status()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    async def _post(self, planned: Planned) -> httpx.Response:
        options = {"steps": planned.steps, "seed": planned.seed}
        match planned.task:
            case "generate":
                return await self._http.post(
                    "/v1/images/generations",
                    json={"prompt": planned.prompt, **options},
                    headers={"Accept": "image/png"},
                )
            case "edit":
                return await self._http.post(
                    "/v1/images/edits",
                    data={"prompt": "change the background to yellow", **options},
                    files={"image": ("source.png", self._png, "image/png")},
                    headers={"Accept": "image/png"},
                )
            case "encode":
                return await self._http.post(
                    "/v1/latents/encode", content=self._png, headers={"Content-Type": "image/png"}
                )
            case "decode":
                return await self._http.post(
                    "/v1/latents/decode",
                    content=self._latents,
                    headers={
                        "Content-Type": "application/vnd.safetensors",
                        "Accept": "image/png",
                    },
                )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    if not values or not 0 < share <= 1:
        raise ValueError(f"needs values and a share in (0, 1], got {len(values)} and {share}")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def slope(seconds: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Least-squares slope per second, and half the width of its 95 % interval.

    Neighbouring samples of a process's memory resemble each other; the interval counts only as many
    as their residuals' correlation leaves independent.
    """
    if len(seconds) != len(values) or len(values) < 4:
        raise ValueError(f"needs 4 pairs or more, got {len(seconds)} and {len(values)}")
    x, y = np.asarray(seconds, float), np.asarray(values, float)
    x = x - x.mean()
    spread = float((x**2).sum())
    gradient = float((x * (y - y.mean())).sum()) / spread
    residuals = y - y.mean() - gradient * x
    power = float((residuals**2).sum())
    if power == 0:
        return gradient, 0.0
    correlation = float((residuals[1:] * residuals[:-1]).sum()) / power
    correlation = min(max(correlation, 0.0), 0.99)
    independent = max(3.0, len(y) * (1 - correlation) / (1 + correlation))
    error = math.sqrt(power / (independent - 2) / (spread * independent / len(y)))
    return gradient, 1.96 * error
