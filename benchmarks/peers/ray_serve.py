"""Ray Serve with `@serve.batch`.

Settings: `max_batch_size`, `batch_wait_timeout_s` for which a batch waits to be full. One replica
that takes any number of requests; pictures are read and written in its threads, beside the model.
No dashboard and no access log.
"""

import asyncio
import os
import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.device import Start
from benchmarks.peers.messages import Ask, Made

START = Start.read()
MANY = 10_000


@serve.deployment(
    max_ongoing_requests=MANY,
    # Ray would give the replica as many threads as it has cores.
    ray_actor_options={"runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}},
    logging_config={"enable_access_log": False},
)
class Server:
    def __init__(self) -> None:
        self.pipeline = START.pipeline()

    @serve.batch(**START.settings)
    async def run(self, asks: list[Ask]) -> list[Made]:
        return await asyncio.to_thread(self.pipeline.run, asks)

    async def __call__(self, request: Request) -> Any:
        if request.url.path == "/predict":
            ask = await asyncio.to_thread(Ask.read, await request.json())
            return await asyncio.to_thread((await self.run(ask)).fields)
        task = request.url.path.removeprefix("/raw/")
        ask = await asyncio.to_thread(Ask.of_bytes, task, await request.body())
        return Response(await asyncio.to_thread((await self.run(ask)).body))


def main() -> None:
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        _node_ip_address="127.0.0.1",
        _temp_dir=os.environ.get("RAY_TMPDIR"),
    )
    serve.start(http_options={"host": "127.0.0.1", "port": START.port})
    serve.run(Server.bind())
    signal.pause()


if __name__ == "__main__":
    main()
