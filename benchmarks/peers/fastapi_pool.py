"""FastAPI with a thread pool: so many requests run side by side, each with a pipeline call.

Settings: `threads` in which requests run at a time. They share the device, which runs one call
after another, so their steps take turns. uvicorn as for the endpoint with a lock.
"""

import threading

import uvicorn

from benchmarks.peers.device import Start
from benchmarks.peers.fastapi_app import make_app
from benchmarks.peers.messages import Ask, Made


def main() -> None:
    start = Start.read()
    pipeline = start.pipeline(shared=True)
    room = threading.Semaphore(start.settings["threads"])

    def run(ask: Ask) -> Made:
        with room:
            return pipeline.run([ask])[0]

    uvicorn.run(make_app(run), port=start.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
