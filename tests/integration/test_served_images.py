"""Masks, variations and previews through the whole service: client, gateway, queue, worker."""

import base64
import io
import re
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from benchmarks.serving import own_server

SIZE = (128, 128)
STEPS = {"seed": 4, "steps": 50}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RPIAE_BACKEND", "fake")
        with own_server() as url:
            yield url


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def source() -> np.ndarray:
    """(H, W, 3) uint8 noise, which no model would paint by chance."""
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def file_of(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels_of(b64: str | None) -> np.ndarray:
    assert b64 is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


def test_what_a_mask_keeps_is_kept_in_previews_too(client: openai.OpenAI, source: np.ndarray):
    """A hole that touches half of a latent cell: its border runs through the cell."""
    changing = np.zeros(SIZE, np.bool_)
    changing[24:72, 40:88] = True
    alpha = np.where(changing, 0, 255).astype(np.uint8)
    events = list(
        client.images.edit(
            image=file_of(source),
            mask=file_of(np.dstack([source, alpha])),
            prompt="change the background to yellow",
            stream=True,
            partial_images=3,
            extra_body=STEPS,
        )
    )
    *previews, last = events
    assert last.type == "image_edit.completed"
    assert 1 <= len(previews) <= 3
    numbers = [event.partial_image_index for event in previews]
    assert numbers == sorted(set(numbers))
    for event in events:
        shown = pixels_of(event.b64_json)
        np.testing.assert_array_equal(shown[~changing], source[~changing])
        assert (shown[changing] != source[changing]).any(-1).mean() > 0.9


def test_a_padded_source_keeps_what_the_mask_keeps(client: openai.OpenAI, source: np.ndarray):
    """64x128 in 128x128: bars above and below, and the picture in its own size between them."""
    wide = source[:64]
    mask = np.dstack([wide, np.full((64, 128), 255, np.uint8)])
    mask[:, :16, 3] = 0
    arguments = {"image": file_of(wide), "mask": file_of(mask), "prompt": "add a red star"}
    cut = client.images.edit(**arguments, extra_body=STEPS)
    framed = client.images.edit(**arguments, size="128x128", extra_body=STEPS)
    assert cut.size == "128x64"
    assert cut.data is not None
    assert framed.data is not None
    shown, whole = pixels_of(cut.data[0].b64_json), pixels_of(framed.data[0].b64_json)
    np.testing.assert_array_equal(shown[:, 16:], wide[:, 16:])
    np.testing.assert_array_equal(whole[32:96], shown)
    assert (np.delete(whole, np.s_[32:96], axis=0) == 255).all()


def test_previews_come_nearer_to_the_picture(client: openai.OpenAI):
    *previews, last = client.images.generate(
        prompt="a red circle", stream=True, partial_images=3, extra_body=STEPS
    )
    assert last.type == "image_generation.completed"
    final = pixels_of(last.b64_json).astype(int)
    distances = [np.abs(pixels_of(event.b64_json) - final).mean() for event in previews]
    assert distances == sorted(distances, reverse=True)


def test_variations_are_counted_as_such(server: str, source: np.ndarray):
    with httpx.Client(base_url=server) as http:
        answer = http.post(
            "/v1/images/variations",
            data={"n": "2", "seed": "3", "strength": "0.5", "steps": "8"},
            files={"image": file_of(source)},
        )
        assert answer.status_code == 200, answer.text
        pictures = [pixels_of(item["b64_json"]) for item in answer.json()["data"]]
        assert (pictures[0].shape, pictures[1].shape) == ((128, 128, 3), (128, 128, 3))
        metrics = http.get("/metrics").text
    assert 'rpiae_requests_total{outcome="ok",task="variation"} 1.0' in metrics.splitlines()
    made = re.findall(r'^rpiae_images_total{task="variation",worker="[^"]+"} (.+)$', metrics, re.M)
    assert made == ["2.0"]
