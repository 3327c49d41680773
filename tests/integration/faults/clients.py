"""Clients of the service: they ask for pictures and know what the right answer is."""

import asyncio
import hashlib
import io
import json
import random
from base64 import b64decode
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

REQUEST_TIMEOUT_S = 50
# What a client is told when it may send the same request again.
_TRY_AGAIN = (429, 503)
_PAUSE_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture to ask for; `stream`: by server-sent events."""

    prompt: str
    seed: int
    steps: int
    stream: bool = False

    @property
    def body(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "seed": self.seed,
            "steps": self.steps,
            "stream": self.stream,
        }


@dataclass(kw_only=True)
class Answer:
    """How a request ended. status 0: the connection broke; code: the error's, or "" if all is well.

    refusals: how often it was sent again, by the error's code; num_pictures: that it was answered
    with, which is 1 unless something is wrong.
    """

    request: Request
    status: int
    code: str = ""
    retry_after: str | None = None
    num_pictures: int = 0
    refusals: Counter[str] = field(default_factory=Counter)


def some_requests(number: int, *, steps: Sequence[int], stream_share: float = 0.0) -> list[Request]:
    """Requests with prompts and seeds of their own."""
    return [
        Request(
            prompt=f"picture {index}",
            seed=1000 + index,
            steps=random.choice(steps),
            stream=random.random() < stream_share,
        )
        for index in range(number)
    ]


def colour(prompt: str) -> tuple[int, int, int]:
    """Of every pixel that the fake backend paints for a prompt."""
    red, green, blue = hashlib.sha256(prompt.encode()).digest()[:3]
    return red, green, blue


def check_picture(request: Request, data: bytes) -> None:
    """It shows what the prompt asks for, and says that it was made from this prompt and seed."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        low_and_high = [(value, value) for value in colour(request.prompt)]
        assert image.getextrema() == tuple(low_and_high), request
        assert isinstance(image, Image.Image)
        assert image.info["prompt"] == request.prompt
        assert image.info["seed"] == str(request.seed)


async def ask(http: httpx.AsyncClient, url: str, request: Request) -> Answer:
    """Send a request once and check what comes back."""
    try:
        answer = await http.post(
            f"{url}/v1/images/generations", json=request.body, timeout=REQUEST_TIMEOUT_S
        )
    except httpx.ReadTimeout:
        raise AssertionError(f"no answer in {REQUEST_TIMEOUT_S} s: {request}") from None
    except httpx.TransportError:
        return Answer(request=request, status=0, code="disconnected")
    if answer.status_code != 200:
        code = answer.json()["error"]["code"]
        retry_after = answer.headers.get("retry-after")
        return Answer(
            request=request, status=answer.status_code, code=code, retry_after=retry_after
        )
    if request.stream:
        return _read_stream(request, answer.text)
    pictures = answer.json()["data"]
    for picture in pictures:
        check_picture(request, b64decode(picture["b64_json"]))
    return Answer(request=request, status=200, num_pictures=len(pictures))


async def ask_until_served(http: httpx.AsyncClient, url: str, request: Request) -> Answer:
    """Send a request again as long as it is refused at the door, as a good client does."""
    refusals: Counter[str] = Counter()
    while True:
        answer = await ask(http, url, request)
        answer.refusals = refusals
        if answer.status not in _TRY_AGAIN:
            return answer
        refusals[answer.code] += 1
        await asyncio.sleep(_PAUSE_S)


async def ask_all(
    urls: Sequence[str], requests: Sequence[Request], *, at_a_time: int, send: Any = ask
) -> list[Answer]:
    """Answers in the order of the requests, which go to the gateways in turn."""
    room = asyncio.Semaphore(at_a_time)
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits, trust_env=False) as http:

        async def one(index: int, request: Request) -> Answer:
            async with room:
                answer: Answer = await send(http, urls[index % len(urls)], request)
                return answer

        return list(await asyncio.gather(*(one(*pair) for pair in enumerate(requests))))


def outcomes(answers: Sequence[Answer]) -> Counter[tuple[int, str]]:
    """How many answers there are of each status and error code."""
    return Counter((answer.status, answer.code) for answer in answers)


def _read_stream(request: Request, text: str) -> Answer:
    num_pictures, code = 0, ""
    for line in text.splitlines():
        if not line.startswith("data:"):
            continue
        event = json.loads(line.removeprefix("data:"))
        if event.get("type", "").endswith(".completed"):
            check_picture(request, b64decode(event["b64_json"]))
            num_pictures += 1
        elif "error" in event:
            code = event["error"]["code"]
    return Answer(request=request, status=200, code=code, num_pictures=num_pictures)
