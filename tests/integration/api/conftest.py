"""A real gateway on a real Redis, a worker that needs no model, and clients for them."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from models.manifest import Manifest, write_manifest
from models.text import SPECIAL_TOKENS
from service.api.server import GatewayServer
from service.settings import Settings
from tests.integration.api.queue_worker import IMAGE_SIZE, LATENT_SHAPE, QueueWorker

MODEL = "tiny"
WORDS = ("a", "red", "blue", "circle", "on", "background")
STATE_DEADLINE_S = 20


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a gateway reads of a bundle: manifest and vocabulary, no weights."""
    directory = tmp_path_factory.mktemp("bundle")
    (directory / "vocabulary.json").write_text(json.dumps([*SPECIAL_TOKENS, *WORDS]))
    manifest = Manifest(
        name=MODEL,
        tasks=["generate", "edit", "variation", "encode", "decode"],
        image_size=IMAGE_SIZE,
        latent_shape=LATENT_SHAPE,
        latents_mean=[0.0],
        latents_std=[1.0],
        timestep_shift=1.0,
        default_steps=20,
        max_steps=50,
        default_guidance_scale=3.0,
        vocabulary_file="vocabulary.json",
    )
    write_manifest(directory, manifest)
    return directory


@dataclass(frozen=True)
class Gateway:
    """A running gateway and how to reach it."""

    url: str
    settings: Settings
    http: httpx.Client
    openai: openai.OpenAI


@contextmanager
def running_gateway(settings: Settings) -> Iterator[Gateway]:
    """A gateway in a thread, for as long as the context lasts."""
    listening = threading.Event()
    server = GatewayServer(settings, lambda _url: listening.set())
    thread = threading.Thread(target=server.run_until_stopped, daemon=True)
    thread.start()
    assert listening.wait(timeout=STATE_DEADLINE_S)
    key = "no-key-needed"
    with (
        httpx.Client(base_url=server.url, timeout=STATE_DEADLINE_S) as http,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client,
    ):
        yield Gateway(server.url, settings, http, client)
    server.should_exit = True
    thread.join(timeout=STATE_DEADLINE_S)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def make_settings(bundle: Path, redis_server: Any) -> Callable[..., Settings]:
    """Settings of a gateway on a free port and a queue of its own."""

    def make(**overrides: Any) -> Settings:
        defaults: dict[str, Any] = {
            "redis_url": redis_server.url,
            "bundle": bundle,
            "port": 0,
            "queue_name": f"test-{uuid.uuid4().hex}",
            "max_body_bytes": 2**20,
            "max_pixels": 2**20,
            "max_prompt_chars": 200,
            "max_latents": 8,
            "drain_timeout_s": 10,
        }
        return Settings(**{**defaults, **overrides})

    return make


@pytest.fixture(scope="module")
def gateway(make_settings: Callable[..., Settings]) -> Iterator[Gateway]:
    """One gateway for the tests of a module."""
    with running_gateway(make_settings()) as running:
        yield running


@pytest.fixture(scope="module")
def _module_worker(gateway: Gateway) -> Iterator[QueueWorker]:
    settings = gateway.settings
    assert settings.redis_url is not None
    with QueueWorker(settings.redis_url, settings.queue_name, MODEL) as running:
        yield running


@pytest.fixture
def worker(_module_worker: QueueWorker) -> Iterator[QueueWorker]:
    """The worker behind `gateway`, at work and without memory of earlier tests."""
    _module_worker.jobs.clear()
    _module_worker.cancelled.clear()
    yield _module_worker
    _module_worker.paused.clear()
    _module_worker.error = _module_worker.outputs = _module_worker.previews = None


@pytest.fixture(scope="session")
def start_gateway() -> Callable[[Settings], AbstractContextManager[Gateway]]:
    """Function that runs a gateway with other settings."""
    return running_gateway


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Wait for a state, at most STATE_DEADLINE_S."""

    def wait(reached: Callable[[], object]) -> None:
        deadline = time.monotonic() + STATE_DEADLINE_S
        while not reached():
            assert time.monotonic() < deadline, "the state was not reached"
            time.sleep(0.01)

    return wait
