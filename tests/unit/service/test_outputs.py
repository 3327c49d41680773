"""Files of finished pictures and previews: what a mask keeps, what a box cuts, what is written."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from service.boxes import Box
from service.engine.work import PictureWork
from service.jobs.job import EditParams, GenerateParams, Job
from service.outputs import encode_outputs

SIZE = (24, 32)  # height, width


def noise(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=generator)


def some_mask() -> Tensor:
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[5:11, 7:20] = True
    return mask


def edit(source: Tensor, mask: Tensor | None, **params: object) -> tuple[Job, PictureWork]:
    options = {"prompt": "", "seed": 3, "steps": 2, "guidance_scale": 1, "image_guidance_scale": 1}
    job = Job(
        id="1", task="edit", model="tiny", params=EditParams(**options, **params), created_at=0
    )
    work = PictureWork(
        id="1", prompt="", seed=3, num_steps=2, guidance_scale=1, source=source, mask=mask
    )
    return job, work


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_what_the_mask_keeps_comes_back_bit_for_bit(output_format):
    source, painted, mask = noise(1), noise(2), some_mask()
    job, work = edit(source, mask, output_format=output_format)
    [file] = encode_outputs(job, {"images": painted[None]}, work)
    found, kept = pixels(file), ~mask.numpy()
    np.testing.assert_array_equal(found[:, kept], source.numpy()[:, kept])
    np.testing.assert_array_equal(found[:, ~kept], painted.numpy()[:, ~kept])


def test_the_box_is_cut_after_the_mask():
    source, painted, mask = noise(1), noise(2), some_mask()
    box = Box(left=4, top=3, width=20, height=10)
    job, work = edit(source, mask, box=box)
    [file] = encode_outputs(job, {"images": painted[None]}, work)
    expected = torch.where(mask, painted, source)[:, 3:13, 4:24]
    np.testing.assert_array_equal(pixels(file), expected.numpy())


def test_without_a_mask_the_picture_is_the_models():
    source, painted = noise(1), noise(2)
    job, work = edit(source, None)
    [file] = encode_outputs(job, {"images": painted[None]}, work)
    np.testing.assert_array_equal(pixels(file), painted.numpy())


def test_every_prompt_can_be_read_from_the_file_again():
    for prompt in ("a red circle", "", "红色的圆 🔴 é", "two\nlines\tand more", "x" * 1000):
        params = GenerateParams(prompt=prompt, seed=5, steps=7, guidance_scale=2.5)
        job = Job(id="1", task="generate", model="tiny", params=params, created_at=0)
        work = PictureWork(id="1", prompt=prompt, seed=5, num_steps=7, guidance_scale=2.5)
        [file] = encode_outputs(job, {"images": noise(1)[None]}, work)
        with Image.open(io.BytesIO(file)) as image:
            image.load()
            text = dict(image.text)
        assert text["prompt"] == prompt
        assert (text["seed"], text["steps"], text["guidance_scale"]) == ("5", "7", "2.5")
        assert (text["sampler"], text["model"]) == ("euler", "tiny")
