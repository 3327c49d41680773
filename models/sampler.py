"""The denoising loop for offline use; the service's engine must give the same latents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from models.context import Context, cat_contexts
from models.manifest import Sampler
from models.solvers import SamplingPlan, advance, plan_sampling
from models.transport import guide_edit, initial_noise, interpolate


class LatentSpace(Protocol):
    """The part of a denoiser's config that sampling needs."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w)."""
        ...


class AnyDenoiser(Protocol):
    """What `TextDenoiser` and `ClassDenoiser` have in common."""

    @property
    def config(self) -> LatentSpace: ...

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    def prefill(self, tokens: Tensor, source_latents: Tensor | None = None, /) -> Any:
        """A `Context` of this denoiser, one row per entry of tokens."""
        ...

    def velocity(self, x: Tensor, t: Tensor, context: Any, /) -> Tensor:
        """Velocity (R, C, h, w) of noisy latents x (R, C, h, w) at times t (R,)."""
        ...


class PromptEncoder(Protocol):
    """Prompts as the ids that a denoiser's `prefill` takes; the empty one is the null prompt."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """(B, ...) int64."""
        ...


_Call: TypeAlias = tuple[AnyDenoiser, Context]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """One denoising run's options, shared by all pictures of a call.

    guidance_scale and image_guidance_scale: 1 is off; guidance_interval: they act where
    low <= t <= high, t = 1 being noise; strength in (0, 1]: below 1 an edit starts from the noised
    source instead of pure noise.
    """

    num_steps: int
    shift: float
    sampler: Sampler = "euler"
    guidance_scale: float = 1.0
    image_guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    strength: float = 1.0

    def __post_init__(self) -> None:
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"guidance_interval must be 0 <= low <= high <= 1, got {self.guidance_interval}"
            )

    def plan(self, *, from_source: bool = False) -> SamplingPlan:
        """The steps of one picture; strength counts only where there is a source.

        Raises:
            ValueError: an option is out of its range.
        """
        strength = self.strength if from_source else 1.0
        return plan_sampling(self.sampler, self.num_steps, self.shift, strength=strength)


@torch.inference_mode()
def generate_latents(
    denoiser: AnyDenoiser,
    tokenizer: PromptEncoder,
    prompts: Sequence[str],
    seeds: Sequence[int],
    options: SamplingOptions,
    *,
    negative_prompts: Sequence[str] | None = None,
    source_latents: Tensor | None = None,
    guide: AnyDenoiser | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Normalized latents (B, C, h, w), one per prompt.

    Args:
        source_latents: (B, C, h, w), for edits.
        guide: a weaker denoiser of the same latents: guidance then starts from its velocity for the
            same prompt (autoguidance, Karras et al. 2024, arXiv 2406.02507) instead of from the
            negative prompt.
        on_step: called as `on_step(done, total)` after each velocity evaluation.

    Raises:
        ValueError: prompts, seeds and negative prompts differ in number, or an option is out of
            its range.
    """
    negatives = list(negative_prompts or [""] * len(prompts))
    if not len(prompts) == len(seeds) == len(negatives):
        raise ValueError(
            f"{len(prompts)} prompts, {len(seeds)} seeds and {len(negatives)} negative prompts"
        )
    plan = options.plan(from_source=source_latents is not None)
    device = denoiser.device
    tokens, negative, empty = (
        tokenizer.encode(texts).to(device) for texts in (prompts, negatives, [""] * len(prompts))
    )
    cond = denoiser.prefill(tokens, source_latents)
    alone: list[_Call] = [(denoiser, cond)]
    guided = alone
    if guide is None:
        contexts = [cond, *_guidance_contexts(denoiser, negative, empty, source_latents, options)]
        guided = [(denoiser, cat_contexts(contexts))]
    elif options.guidance_scale != 1:
        guided = [*alone, (guide, guide.prefill(tokens, source_latents))]
    x = torch.stack([initial_noise(seed, denoiser.config.latent_shape) for seed in seeds])
    x = x.to(device)
    if source_latents is not None:
        x = interpolate(source_latents, x, x.new_full((len(x),), plan.times[0]))
    states = torch.stack([plan.initial_state(point) for point in x])
    low, high = options.guidance_interval
    for index, (t, matrix) in enumerate(zip(plan.times, plan.maps, strict=True)):
        velocity = _velocity(guided if low <= t <= high else alone, states[:, 0], t, options)
        states = advance(states, velocity, matrix.expand(len(states), -1, -1))
        if on_step is not None:
            on_step(index + 1, plan.num_evaluations)
    return states[:, 0]


def _guidance_contexts(
    denoiser: AnyDenoiser,
    negative: Tensor,
    empty: Tensor,
    source_latents: Tensor | None,
    options: SamplingOptions,
) -> list[Context]:
    """Contexts that guidance needs beside the conditional one: each holds one row per prompt.

    negative, empty: ids of the negative prompts and of as many empty ones.
    """
    contexts: list[Context] = []
    image_guided = source_latents is not None and options.image_guidance_scale != 1
    if options.guidance_scale != 1 or image_guided:
        contexts.append(denoiser.prefill(negative, source_latents))
    if image_guided:
        contexts.append(denoiser.prefill(empty))
    return contexts


def _velocity(calls: Sequence[_Call], x: Tensor, t: float, options: SamplingOptions) -> Tensor:
    """Guided velocity (B, C, h, w) of x (B, C, h, w) at one time for all.

    Each call's context holds one or more blocks of B rows. The first block is conditional; the
    last is the one that guidance starts from. A single block stays as it is.
    """
    velocities: list[Tensor] = []
    for denoiser, context in calls:
        num_blocks = context.num_rows // len(x)
        rows = x.new_full((context.num_rows,), t)
        velocity = denoiser.velocity(x.repeat(num_blocks, 1, 1, 1), rows, context)
        velocities += velocity.chunk(num_blocks)
    if len(velocities) == 1:
        return velocities[0]
    scales = (options.guidance_scale, options.image_guidance_scale)
    per_row = (x.new_full((len(x),), scale) for scale in scales)
    return guide_edit(velocities[0], velocities[1], velocities[-1], *per_row)
