"""The denoising loop for offline use; the service's engine must give the same latents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.text import PromptTokenizer
from models.text_denoiser import TextContext, TextDenoiser
from models.transport import (
    euler_step,
    guide,
    guide_edit,
    initial_noise,
    interpolate,
    start_step,
    timestep_schedule,
)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """One denoising run's options, shared by all pictures of a call.

    guidance_scale and image_guidance_scale: 1 is off; strength in (0, 1]: below 1 the run starts
    from the noised source instead of pure noise.
    """

    num_steps: int
    shift: float
    guidance_scale: float = 1.0
    image_guidance_scale: float = 1.0
    strength: float = 1.0


@torch.inference_mode()
def generate_latents(
    denoiser: TextDenoiser,
    tokenizer: PromptTokenizer,
    prompts: Sequence[str],
    seeds: Sequence[int],
    options: SamplingOptions,
    *,
    negative_prompts: Sequence[str] | None = None,
    source_latents: Tensor | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Normalized latents (B, C, h, w), one per prompt; with source_latents (B, C, h, w), edits.

    `on_step(done, total)` is called after each step.

    Raises:
        ValueError: prompts, seeds and negative prompts differ in number.
    """
    negatives = list(negative_prompts or [""] * len(prompts))
    if not len(prompts) == len(seeds) == len(negatives):
        raise ValueError(
            f"{len(prompts)} prompts, {len(seeds)} seeds and {len(negatives)} negative prompts"
        )
    device = denoiser.position.device
    contexts = _contexts(denoiser, tokenizer, prompts, negatives, source_latents, options)
    times = timestep_schedule(options.num_steps, options.shift).to(device)
    start = start_step(options.num_steps, options.strength)
    x = torch.stack([initial_noise(seed, denoiser.config.latent_shape) for seed in seeds])
    x = x.to(device)
    if start and source_latents is not None:
        x = interpolate(source_latents, x, times[start].expand(len(x)))
    context = TextContext.cat(contexts)
    num_steps = options.num_steps - start
    for index, (t, t_next) in enumerate(zip(times[start:-1], times[start + 1 :], strict=True)):
        rows = t.expand(len(x) * len(contexts))
        velocities = denoiser.velocity(x.repeat(len(contexts), 1, 1, 1), rows, context)
        velocity = _guided(velocities.chunk(len(contexts)), source_latents is not None, options)
        x = euler_step(x, velocity, t.expand(len(x)), t_next.expand(len(x)))
        if on_step is not None:
            on_step(index + 1, num_steps)
    return x


def _contexts(
    denoiser: TextDenoiser,
    tokenizer: PromptTokenizer,
    prompts: Sequence[str],
    negatives: Sequence[str],
    source_latents: Tensor | None,
    options: SamplingOptions,
) -> list[TextContext]:
    """The conditional context, then those that guidance needs: each holds one row per prompt."""
    device = denoiser.position.device
    cond, negative = (tokenizer.encode(texts).to(device) for texts in (prompts, negatives))
    contexts = [denoiser.prefill(cond, source_latents)]
    if source_latents is None:
        if options.guidance_scale != 1:
            contexts.append(denoiser.prefill(negative))
        return contexts
    if options.guidance_scale != 1 or options.image_guidance_scale != 1:
        contexts.append(denoiser.prefill(negative, source_latents))
    if options.image_guidance_scale != 1:
        empty = tokenizer.encode([""] * len(prompts)).to(device)
        contexts.append(denoiser.prefill(empty))
    return contexts


def _guided(velocities: Sequence[Tensor], edit: bool, options: SamplingOptions) -> Tensor:
    cond = velocities[0]
    if len(velocities) == 1:
        return cond
    scale = cond.new_full((len(cond),), options.guidance_scale)
    if not edit:
        return guide(cond, velocities[1], scale)
    image_scale = cond.new_full((len(cond),), options.image_guidance_scale)
    return guide_edit(cond, velocities[1], velocities[-1], scale, image_scale)
