"""How pictures are sampled: what was asked for, the model's defaults, and the limits."""

from typing import Protocol, TypedDict

from models.manifest import Manifest, Sampler, min_steps
from service.errors import InvalidRequest


class Asked(Protocol):
    """Options of a request or a command; None takes the model's default."""

    @property
    def sampler(self) -> Sampler | None: ...
    @property
    def steps(self) -> int | None: ...
    @property
    def guidance_scale(self) -> float | None: ...
    @property
    def guidance_min_t(self) -> float | None: ...
    @property
    def guidance_max_t(self) -> float | None: ...


class SamplingParams(TypedDict):
    """Fields of `GenerateParams`."""

    sampler: Sampler
    steps: int
    guidance_scale: float
    guidance_min_t: float
    guidance_max_t: float


def sampling_params(asked: Asked, manifest: Manifest) -> SamplingParams:
    """The options that pictures are made with.

    Raises:
        InvalidRequest: 422 for steps out of the model's or the sampler's range, or an interval of
            guidance that is empty or outside [0, 1].
    """
    sampler = asked.sampler or manifest.sampler
    fewest = min_steps(sampler)
    steps = max(manifest.default_steps, fewest) if asked.steps is None else asked.steps
    if steps > manifest.max_steps:
        raise _out_of_range("steps", f"is {steps}: the most is {manifest.max_steps}")
    if steps < fewest:
        raise _out_of_range("steps", f"is {steps}: {sampler} takes at least {fewest}")
    default_low, default_high = manifest.guidance_interval
    low = _or(asked.guidance_min_t, default_low)
    high = _or(asked.guidance_max_t, default_high)
    for name, t in (("guidance_min_t", low), ("guidance_max_t", high)):
        if not 0 <= t <= 1:
            raise _out_of_range(name, f"is {t}: it must be 0 to 1")
    if low > high:
        raise _out_of_range("guidance_min_t", f"is {low}, above guidance_max_t, which is {high}")
    return SamplingParams(
        sampler=sampler,
        steps=steps,
        guidance_scale=_or(asked.guidance_scale, manifest.default_guidance_scale),
        guidance_min_t=low,
        guidance_max_t=high,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _out_of_range(param: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{param} {problem}", status=422, param=param, code="invalid_value")
