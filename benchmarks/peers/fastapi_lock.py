"""A plain FastAPI endpoint around the pipeline, one request at a time behind a lock.

Settings: none. uvicorn with uvloop and httptools, no access log. Pictures are read and written
outside of the lock. Waiting requests hold the threads of FastAPI's pool, 40 of them.
"""

import threading

import uvicorn

from benchmarks.peers.device import Start
from benchmarks.peers.fastapi_app import make_app
from benchmarks.peers.messages import Ask, Made


def main() -> None:
    start = Start.read()
    pipeline, lock = start.pipeline(), threading.Lock()

    def run(ask: Ask) -> Made:
        with lock:
            return pipeline.run([ask])[0]

    uvicorn.run(make_app(run), port=start.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
