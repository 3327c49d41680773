"""How options of a request become a job's: defaults of the model, limits of the sampler."""

from typing import Any

import pytest
from pydantic import ValidationError

from models.manifest import Manifest
from service.api.images.sampling import sampling_params
from service.api.images.schemas import GenerationFields
from service.errors import InvalidRequest


def manifest(**fields: Any) -> Manifest:
    base: dict[str, Any] = {
        "name": "tiny",
        "tasks": ["generate"],
        "image_size": (32, 32),
        "latent_shape": (8, 4, 4),
        "latents_mean": [0.0],
        "latents_std": [1.0],
        "timestep_shift": 1.5,
        "default_steps": 4,
        "max_steps": 50,
        "default_guidance_scale": 2.0,
    }
    return Manifest(**(base | fields))


def params(model: Manifest, **asked: Any) -> dict[str, Any]:
    return dict(sampling_params(GenerationFields(prompt="a", **asked), model))


def test_what_is_not_asked_for_is_the_models() -> None:
    model = manifest(sampler="unipc", guidance_interval=(0.1, 0.9))
    assert params(model) == {
        "sampler": "unipc",
        "steps": 4,
        "guidance_scale": 2.0,
        "guidance_min_t": 0.1,
        "guidance_max_t": 0.9,
    }
    asked = {
        "sampler": "heun",
        "steps": 7,
        "guidance_scale": 0.0,
        "guidance_min_t": 0.0,
        "guidance_max_t": 0.5,
    }
    assert params(model, **asked) == asked


def test_default_steps_are_enough_for_any_sampler() -> None:
    assert params(manifest(default_steps=1), sampler="euler-reference")["steps"] == 2


@pytest.mark.parametrize(
    ("asked", "param", "text"),
    [
        ({"steps": 51}, "steps", "the most is 50"),
        ({"steps": 1, "sampler": "euler-reference"}, "steps", "euler-reference takes at least 2"),
        ({"guidance_min_t": 0.95}, "guidance_min_t", "is 0.95, above guidance_max_t, which is 0.9"),
        ({"guidance_max_t": 0.05}, "guidance_min_t", "is 0.1, above guidance_max_t"),
    ],
)
def test_limits(asked: dict[str, Any], param: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match=text) as caught:
        params(manifest(guidance_interval=(0.1, 0.9)), **asked)
    assert (caught.value.status, caught.value.param) == (422, param)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"guidance_interval": (0.6, 0.5)}, "guidance_interval must be 0 <= low <= high <= 1"),
        (
            {"sampler": "euler-reference", "default_steps": 1},
            "default_steps must be >= 2 for euler",
        ),
        ({"sampler": "ddim"}, "sampler"),
    ],
)
def test_a_manifest_states_options_that_work(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        manifest(**fields)
