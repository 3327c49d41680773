"""BentoML with adaptive batching.

Settings: `max_batch_size`; `max_latency_ms` so long that no request is refused, as BentoML does
with what it believes it cannot answer in time. How long a batch waits it learns by itself. One
worker. Files travel as JSON in base64: a batch takes one list of items, not raw bodies.
"""

import os
import sys
from typing import Any

import bentoml

from benchmarks.peers.device import TASK, Start
from benchmarks.peers.messages import Ask

SETTINGS = Start.read().settings if TASK in os.environ else {}


@bentoml.service(workers=1, traffic={"timeout": 3600}, logging={"access": {"enabled": False}})
class Server:
    def __init__(self) -> None:
        self.pipeline = Start.read().pipeline()

    @bentoml.api(batchable=True, **SETTINGS)
    def predict(self, requests: list[dict[str, Any]]) -> list[dict[str, str]]:
        made = self.pipeline.run([Ask.read(fields) for fields in requests])
        return [one.fields() for one in made]


def main() -> None:
    port = str(Start.read().port)
    command = ["-m", "bentoml", "serve", f"{__spec__.name}:Server", "--host", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, *command, "--port", port])


if __name__ == "__main__":
    main()
