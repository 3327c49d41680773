"""The endpoints of the two plain FastAPI servers."""

from collections.abc import Callable

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from benchmarks.peers.messages import Ask, Made
from benchmarks.serving_load import Task


def make_app(run: Callable[[Ask], Made]) -> FastAPI:
    """An application that calls `run` in its thread pool, for each request by itself."""
    app = FastAPI()

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, str]:
        fields = await request.json()
        return await run_in_threadpool(lambda: run(Ask.read(fields)).fields())

    @app.post("/raw/{task}")
    async def raw(task: Task, request: Request) -> Response:
        body = await request.body()
        return Response(await run_in_threadpool(lambda: run(Ask.of_bytes(task, body)).body()))

    return app
