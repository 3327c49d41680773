"""The gateway application: HTTP in, jobs into the queue, results out. It runs no model."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import httpx
from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from service.api import health
from service.api.admin.router import router as admin_router
from service.api.admission import Admission
from service.api.body_limit import BodyLimitMiddleware
from service.api.busy_limit import BusyLimitMiddleware
from service.api.error_response import install_error_handlers
from service.api.files.router import router as files_router
from service.api.following import follow_workers
from service.api.images.router import router as images_router
from service.api.jobs.router import router as jobs_router
from service.api.latents.router import router as latents_router
from service.api.models.router import router as models_router
from service.api.openapi import ERROR
from service.api.playground.router import router as playground_router
from service.api.request_context import PROBES, RequestContextMiddleware
from service.api.state import CurrentModel, Gateway, State
from service.errors import QueueUnavailable
from service.jobs.connection import connect
from service.jobs.queue import JobQueue
from service.jobs.reloads import Reloads
from service.log import get_logger
from service.served_model import ServedModel
from service.settings import ENV_PREFIX, Settings, SettingsError
from service.tasks import end_tasks
from service.tracing import Tracing, start_tracing

# What a browser hides from a page of another origin unless told otherwise.
_EXPOSED_HEADERS = (
    "idempotent-replayed", "location", "ratelimit-limit", "ratelimit-policy", "ratelimit-remaining",
    "ratelimit-reset", "retry-after", "server-timing", "x-request-id", "x-rpiae-box", "x-rpiae-fit",
    "x-rpiae-job", "x-rpiae-seed",
)  # fmt: skip

_CANCEL_TIMEOUT_S = 5.0


def create_app(settings: Settings) -> FastAPI:
    """The application; what it connects to is opened by its lifespan.

    Raises:
        SettingsError: no Redis address, or traces are wanted and their packages are missing.
        BundleError: no usable manifest, vocabulary or class names in `settings.bundle`.
    """
    if settings.redis_url is None:
        raise SettingsError(f"a gateway needs a Redis: set {ENV_PREFIX}REDIS_URL")
    settings.check_exposure()
    model = ServedModel.read(settings.bundle)
    tracing = start_tracing(settings, "gateway")
    app = FastAPI(
        title="rpiae",
        description="Pictures from prompts, edits by instruction, and the latents between them. "
        "The image endpoints follow OpenAI's Images API; further fields are extensions.",
        lifespan=_lifespan(settings, settings.redis_url, model, tracing),
        telemetry=_spans(tracing),
        responses={"default": ERROR},
        redirect_slashes=False,  # would send clients to whatever Host they named
        # The first is the outermost: a browser must be able to read every answer, whatever it is.
        middleware=[
            *_cors(settings.cors_origins),
            Middleware(RequestContextMiddleware, tracing=tracing),
            Middleware(BusyLimitMiddleware, max_requests=settings.max_connections),
            Middleware(
                BodyLimitMiddleware,
                max_bytes=settings.max_body_bytes,
                read_timeout_s=settings.read_timeout_s,
            ),
        ],
    )
    app.state.draining = asyncio.Event()
    install_error_handlers(app)
    routers = (models_router, images_router, latents_router, jobs_router, files_router)
    for router in (health.router, *routers, playground_router):
        app.include_router(router)
    if settings.admin_keys:  # without one there is no such address
        app.include_router(admin_router)
    return app


def _spans(tracing: Tracing) -> TelemetryConfig:
    """The framework makes the span of each request; of all else it can send it sends nothing."""
    return {
        "tracing": tracing.provider is not None,
        "tracer_provider": tracing.provider,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": False,
        "exclude": lambda scope: scope.get("path") in PROBES,
    }


def _cors(origins: Sequence[str]) -> list[Middleware]:
    """Pages of these origins may call the service, with a key that they know."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=_EXPOSED_HEADERS,
            max_age=3600,
        )
    ]


def _lifespan(
    settings: Settings, redis_url: str, model: ServedModel, tracing: Tracing
) -> Callable[[FastAPI], AbstractAsyncContextManager[State]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        redis = connect(redis_url)
        queue = JobQueue.from_settings(redis, settings)
        waiting: set[asyncio.Task[Any]] = set()
        following = None
        try:
            await _open_queue(queue)
            # Plain HTTP to this machine: no certificates to load, no proxy to ask.
            async with httpx.AsyncClient(verify=False, trust_env=False, timeout=1) as local_http:
                gateway = Gateway(
                    settings=settings,
                    model=CurrentModel(model),
                    queue=queue,
                    reloads=Reloads(redis, name=settings.queue_name),
                    admission=Admission(settings, redis),
                    local_http=local_http,
                    waiting=waiting,
                    draining=app.state.draining,
                    decoding=anyio.CapacityLimiter(os.cpu_count() or 1),
                    tracing=tracing,
                )
                following = asyncio.create_task(follow_workers(gateway))
                yield State(gateway=gateway)
        finally:
            if following is not None:
                await end_tasks([following])
            if waiting:  # after the drain's limit: these were told to end
                await asyncio.wait(waiting, timeout=_CANCEL_TIMEOUT_S)
            await queue.close()
            await redis.aclose()
            await asyncio.to_thread(tracing.close)

    return lifespan


async def _open_queue(queue: JobQueue) -> None:
    """A Redis that is not there yet is no reason not to start: `/readyz` says what is missing."""
    try:
        await queue.open()
    except QueueUnavailable as error:
        get_logger(__name__).warning("queue not opened yet", error=error.message)
