"""The gateway application: HTTP in, jobs into the queue, results out. It runs no model."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import httpx
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from models.class_names import ClassNames
from models.manifest import MANIFEST_NAME, Manifest, read_manifest
from service.api import health
from service.api.admission import Admission
from service.api.body_limit import BodyLimitMiddleware
from service.api.busy_limit import BusyLimitMiddleware
from service.api.error_response import install_error_handlers
from service.api.files.router import router as files_router
from service.api.images.router import router as images_router
from service.api.jobs.router import router as jobs_router
from service.api.latents.router import router as latents_router
from service.api.models.router import router as models_router
from service.api.openapi import ERROR
from service.api.playground.router import router as playground_router
from service.api.request_context import RequestContextMiddleware
from service.api.state import Gateway, State
from service.api.vocabulary import Vocabulary
from service.errors import QueueUnavailable
from service.jobs.connection import connect
from service.jobs.queue import JobQueue
from service.log import get_logger
from service.metrics import MODEL
from service.settings import ENV_PREFIX, Settings, SettingsError

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
        SettingsError: no Redis address.
        BundleError: no usable manifest, vocabulary or class names in `settings.bundle`.
    """
    if settings.redis_url is None:
        raise SettingsError(f"a gateway needs a Redis: set {ENV_PREFIX}REDIS_URL")
    manifest = read_manifest(settings.bundle)
    app = FastAPI(
        title="rpiae",
        description="Pictures from prompts, edits by instruction, and the latents between them. "
        "The image endpoints follow OpenAI's Images API; further fields are extensions.",
        lifespan=_lifespan(
            settings,
            settings.redis_url,
            manifest,
            Vocabulary.read(settings.bundle, manifest),
            ClassNames.of(manifest),
        ),
        responses={"default": ERROR},
        redirect_slashes=False,  # would send clients to whatever Host they named
        # The first is the outermost: a browser must be able to read every answer, whatever it is.
        middleware=[
            *_cors(settings.cors_origins),
            Middleware(RequestContextMiddleware),
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
    return app


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
    settings: Settings,
    redis_url: str,
    manifest: Manifest,
    vocabulary: Vocabulary | None,
    class_names: ClassNames | None,
) -> Callable[[FastAPI], AbstractAsyncContextManager[State]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        redis = connect(redis_url)
        queue = JobQueue.from_settings(redis, settings)
        waiting: set[asyncio.Task[Any]] = set()
        MODEL.info({"name": manifest.name, "licence": manifest.licence})
        try:
            await _open_queue(queue)
            # Plain HTTP to this machine: no certificates to load, no proxy to ask.
            async with httpx.AsyncClient(verify=False, trust_env=False, timeout=1) as local_http:
                yield State(
                    gateway=Gateway(
                        settings=settings,
                        manifest=manifest,
                        bundle_written_at=int((settings.bundle / MANIFEST_NAME).stat().st_mtime),
                        vocabulary=vocabulary,
                        class_names=class_names,
                        queue=queue,
                        admission=Admission(settings, redis),
                        local_http=local_http,
                        waiting=waiting,
                        draining=app.state.draining,
                        decoding=anyio.CapacityLimiter(os.cpu_count() or 1),
                    )
                )
        finally:
            if waiting:  # after the drain's limit: these were told to end
                await asyncio.wait(waiting, timeout=_CANCEL_TIMEOUT_S)
            await queue.close()
            await redis.aclose()

    return lifespan


async def _open_queue(queue: JobQueue) -> None:
    """A Redis that is not there yet is no reason not to start: `/readyz` says what is missing."""
    try:
        await queue.open()
    except QueueUnavailable as error:
        get_logger(__name__).warning("queue not opened yet", error=error.message)
