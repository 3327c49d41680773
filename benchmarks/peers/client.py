"""Sends the same requests to the service and to the other servers, each in its own words."""

import asyncio
import colorsys
import io
import time
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import count
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.peers.processes import OURS, Server
from benchmarks.serving_load import LoadClient, Planned, Sample
from models.manifest import Manifest

INSTRUCTION = "change the background to yellow"
RAW_SERVERS = (OURS, "fastapi-lock", "fastapi-pool", "ray-serve")
READY_DEADLINE_S = 120.0
_HUES = 97
_POLL_S = 0.05
_JSON = {"Accept": "application/json"}


class Client(LoadClient):
    """Pictures travel as base64 in JSON; encode and decode raw where `raw` and the server can."""

    def __init__(self, server: Server, manifest: Manifest, *, raw: bool = True) -> None:
        super().__init__(server.url, manifest)
        self._server = server
        self._manifest = manifest
        self._raw = raw and server.name in RAW_SERVERS

    async def wait_until_ready(self) -> float:
        """Seconds from the server's start to its first picture.

        Raises:
            TimeoutError: there was none in time.
        """
        first = Planned(at_s=0, task="generate", steps=1, seed=0)
        while time.perf_counter() < self._server.started + READY_DEADLINE_S:
            if (await self.send(first, time.perf_counter())).status == httpx.codes.OK:
                return time.perf_counter() - self._server.started
            await asyncio.sleep(_POLL_S)
        raise TimeoutError(f"{self._server.name} gave no picture in {READY_DEADLINE_S:.0f} s")

    async def picture(self, planned: Planned) -> NDArray[np.uint8]:
        """The pixels (H, W, 3) of an answer.

        Raises:
            httpx.HTTPStatusError: it is none.
        """
        answer = (await self._post(planned)).raise_for_status().json()
        if self._server.name == OURS:
            text = answer["data"][0]["b64_json"]
        else:
            text = (answer[0] if self._server.name == "bentoml" else answer)["image"]
        return np.asarray(Image.open(io.BytesIO(b64decode(text))))

    async def closed_loop(
        self, plan: Sequence[Planned], clients: int, seconds: float, grace_s: float
    ) -> list[Sample]:
        """So many clients, each of which sends one request after the other for so long.

        Latency counts from when a request was sent. What is not answered `grace_s` after the end
        is given up, with the time until then as its latency and status 0.
        """
        started = time.perf_counter()
        numbers = count()

        async def client(samples: list[Sample]) -> None:
            while (now := time.perf_counter() - started) < seconds:
                number = next(numbers)
                planned = plan[number % len(plan)]
                # Other seeds, and so other prompts, when the plan begins again.
                planned = replace(planned, at_s=now, seed=planned.seed + number // len(plan))
                await self._send_or_give_up(planned, started, seconds + grace_s, samples)

        samples: list[Sample] = []
        await asyncio.gather(*(client(samples) for _ in range(clients)))
        return samples

    async def open_loop(
        self, plan: Sequence[Planned], seconds: float, grace_s: float
    ) -> list[Sample]:
        """Each request at its planned time, from which its latency counts; given up as above."""
        started = time.perf_counter()
        samples: list[Sample] = []

        async def one(planned: Planned) -> None:
            await asyncio.sleep(started + planned.at_s - time.perf_counter())
            await self._send_or_give_up(planned, started, seconds + grace_s, samples)

        await asyncio.gather(*(one(planned) for planned in plan))
        return samples

    async def _send_or_give_up(
        self, planned: Planned, started: float, until_s: float, samples: list[Sample]
    ) -> None:
        try:
            async with asyncio.timeout(started + until_s - time.perf_counter()):
                samples.append(await self.send(planned, started))
        except TimeoutError:
            latency_s = time.perf_counter() - started - planned.at_s
            samples.append(Sample(planned=planned, latency_s=latency_s, late_s=0.0, status=0))

    async def _post(self, planned: Planned) -> httpx.Response:
        if self._server.name == OURS:
            return await self._post_to_ours(planned)
        if planned.task in ("encode", "decode") and self._raw:
            content = self._latents if planned.task == "decode" else self._source(planned)
            return await self._http.post(f"/raw/{planned.task}", content=content)
        fields: dict[str, Any] = {"task": planned.task}
        if planned.task in ("generate", "edit"):
            editing = planned.task == "edit"
            fields["prompt"] = INSTRUCTION if editing else planned.prompt
            fields |= {"steps": planned.steps, "seed": planned.seed}
            fields["guidance_scale"] = self._manifest.default_guidance_scale
        if planned.task in ("edit", "encode"):
            fields["image"] = b64encode(self._source(planned)).decode()
        elif planned.task == "decode":
            fields["latents"] = b64encode(self._latents).decode()
        body = {"requests": [fields]} if self._server.name == "bentoml" else fields
        return await self._http.post("/predict", json=body)

    async def _post_to_ours(self, planned: Planned) -> httpx.Response:
        options = {
            "steps": planned.steps,
            "seed": planned.seed,
            "guidance_scale": self._manifest.default_guidance_scale,
        }
        match planned.task:
            case "generate":
                body = {"prompt": planned.prompt, **options}
                return await self._http.post("/v1/images/generations", json=body, headers=_JSON)
            case "edit":
                return await self._http.post(
                    "/v1/images/edits",
                    data={"prompt": INSTRUCTION, **options},
                    files={"image": ("source.png", self._source(planned), "image/png")},
                    headers=_JSON,
                )
            case "encode" if not self._raw:
                images = [b64encode(self._source(planned)).decode()]
                return await self._http.post(
                    "/v1/latents/encode", json={"images": images}, headers=_JSON
                )
            case "decode" if not self._raw:
                body = {"latents": np.zeros((1, *self._manifest.latent_shape)).tolist()}
                return await self._http.post("/v1/latents/decode", json=body, headers=_JSON)
        return await super()._post(planned)

    def _source(self, planned: Planned) -> bytes:
        """A source of its own for each of many requests: what is the same is computed once."""
        return _picture(self._manifest.image_size, planned.seed % _HUES)


@lru_cache(maxsize=2 * _HUES)
def _picture(size: tuple[int, int], number: int) -> bytes:
    colour = tuple(round(255 * value) for value in colorsys.hsv_to_rgb(number / _HUES, 0.8, 0.9))
    file = io.BytesIO()
    Image.new("RGB", (size[1], size[0]), colour).save(file, "PNG")
    return file.getvalue()
