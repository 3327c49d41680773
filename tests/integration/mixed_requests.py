"""Requests of every task and every outcome that a client can bring about, and its own count."""

import io
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import httpx
from PIL import Image

SIDE = 16  # of the fake bundle's pictures
LONG_STEPS = 100  # of 20 ms; longer than a busy machine takes to see that a client has left
TIMEOUT_S = 40
NUM_CLIENTS = 6
# Settings of the server, and keys enough that none but SPENT comes to its rate.
MAX_JOBS, MAX_WAITING, RATE = 9, 8, 60
KEYS = tuple(f"key-of-client-{index:02}" for index in range(40))
SPENT = "key-of-the-client-that-asks-for-too-much"
SETTINGS = {
    "RPIAE_API_KEYS": ",".join((*KEYS, SPENT)),
    "RPIAE_MAX_JOBS_PER_KEY": str(MAX_JOBS),
    "RPIAE_MAX_WAITING": str(MAX_WAITING),
    "RPIAE_RATE_LIMIT": f"{RATE}/hour",
}
_OUTCOMES = {200: "ok", 422: "client_error", 504: "expired"}
_REFUSALS = {
    "queue_full": "rejected",
    "rate_limit_exceeded": "limited",
    "too_many_jobs": "limited",
}

Send: TypeAlias = Callable[[httpx.Client, int], tuple[str, int]]


def _picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), "red").save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = _picture()


def _outcome(answer: httpx.Response) -> tuple[str, int]:
    """Outcome, and pictures that were delivered, by what the answer says."""
    if answer.status_code == 429:
        return _REFUSALS[answer.json()["error"]["code"]], 0
    outcome = _OUTCOMES[answer.status_code]
    if outcome != "ok":
        return outcome, 0
    is_json = answer.headers["content-type"] == "application/json"
    return outcome, len(answer.json().get("data", [0])) if is_json else 1


def generate(key: str | None = None, **fields: Any) -> Send:
    def send(client: httpx.Client, seed: int) -> tuple[str, int]:
        body = {"prompt": "a red circle", "steps": 4, "seed": seed, **fields}
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return _outcome(client.post("/v1/images/generations", json=body, headers=headers))

    return send


def upload(path: str, **fields: str) -> Send:
    def send(client: httpx.Client, seed: int) -> tuple[str, int]:
        data = {"steps": "4", "seed": str(seed), **fields}
        return _outcome(client.post(path, data=data, files={"image": PICTURE}))

    return send


def encode(client: httpx.Client, _seed: int) -> tuple[str, int]:
    headers = {"content-type": "image/png"}
    return _outcome(client.post("/v1/latents/encode", content=PICTURE, headers=headers))


def decode(client: httpx.Client, seed: int) -> tuple[str, int]:
    body = {"latents": [[[[seed / 1000] * 2] * 2] * 4]}
    return _outcome(client.post("/v1/latents/decode", json=body))


def leave_midway(client: httpx.Client, seed: int) -> tuple[str, int]:
    """Close the connection at the first preview, when most steps are still to be done."""
    body = {"steps": LONG_STEPS, "partial_images": 3, "stream": True}
    body |= {"prompt": "a star", "seed": seed}
    with client.stream("POST", "/v1/images/generations", json=body) as answer:
        if answer.status_code != 200:
            answer.read()
            return _outcome(answer)
        next(answer.iter_lines())
    return "cancelled", 0


KINDS: list[tuple[str, Send]] = [
    ("generate", generate(deadline_ms=60_000)),
    ("generate", generate(priority="batch")),
    ("generate", generate(steps=0)),
    ("generate", generate(n=MAX_JOBS + 1)),  # more than a key may have at a time
    ("generate", generate(n=MAX_WAITING + 1)),  # more than may wait
    ("generate", generate(SPENT, n=4)),  # its rate, after a while
    ("generate", generate(deadline_ms=1)),
    ("generate", leave_midway),
    ("edit", upload("/v1/images/edits", prompt="make it blue")),
    ("variation", upload("/v1/images/variations")),
    ("encode", encode),
    ("decode", decode),
]


class Clients:
    """Clients of several gateways, and what they count.

    Attributes:
        outcomes: answers by task and outcome.
        pictures: delivered ones by task.
    """

    def __init__(self, gateways: Sequence[str]) -> None:
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.pictures: Counter[str] = Counter()
        self._gateways = gateways
        self._seeds: Iterator[int] = itertools.count()
        self._lock = threading.Lock()

    @property
    def num_sent(self) -> int:
        return self.outcomes.total()

    def send(self, task: str, call: Send) -> None:
        """One request on a connection of its own, to the next gateway, with the next key."""
        with self._lock:
            seed = next(self._seeds)
        turn = seed // len(KINDS)  # so that no kind always meets the same gateway or key
        gateway = self._gateways[(seed + turn) % len(self._gateways)]
        headers = {"authorization": f"Bearer {KEYS[(seed + turn) % len(KEYS)]}"}
        with httpx.Client(base_url=gateway, headers=headers, timeout=TIMEOUT_S) as client:
            outcome, num_pictures = call(client, seed)
        with self._lock:
            self.outcomes[task, outcome] += 1
            self.pictures[task] += num_pictures

    def send_all(self, num_rounds: int) -> None:
        """So many requests of each kind, several at once."""
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            for done in [pool.submit(self.send, *kind) for kind in KINDS * num_rounds]:
                done.result()
