"""Linear-path flow matching: the only place that knows which end of t is noise.

t = 0 is data, t = 1 is noise; x_t = (1 - t) * data + t * noise; velocity = noise - data.
t, scales and shifts are per row, (B,): rows of one batch may be at different steps.

Sources: Lipman et al. 2022 (arXiv 2210.02747); Esser et al. 2024 (arXiv 2403.03206) for the
logit-normal times and the shift; Brooks et al. 2023 (arXiv 2211.09800) for two-scale guidance.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _like(t: Tensor, x: Tensor) -> Tensor:
    return t.view(-1, *[1] * (x.ndim - 1))  # (B,) -> (B, 1, ..., 1)


def shift_timesteps(t: Tensor, shift: float) -> Tensor:
    """Move timesteps towards noise; shift = 1 leaves them as they are.

    Raises:
        ValueError: shift is below 1.
    """
    if shift < 1:
        raise ValueError(f"timestep shift must be >= 1, got {shift}")
    return shift * t / (1 + (shift - 1) * t)


def default_shift(latent_shape: Sequence[int]) -> float:
    """sqrt(latent values / 4096), at least 1: 2.0 for (64, 16, 16). Source: RAE (2510.11690)."""
    num_values = 1
    for side in latent_shape:
        num_values *= side
    return max(1.0, math.sqrt(num_values / 4096))


def timestep_schedule(num_steps: int, shift: float) -> Tensor:
    """(num_steps + 1,) timesteps from 1 (noise) down to 0 (data), float64.

    Raises:
        ValueError: num_steps is below 1 or shift below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be >= 1, got {num_steps}")
    return shift_timesteps(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift)


def start_step(num_steps: int, strength: float) -> int:
    """Index into the schedule where a run from a noised source begins; strength 1 gives 0.

    Raises:
        ValueError: strength is outside (0, 1].
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], got {strength}")
    return num_steps - max(1, round(num_steps * strength))


def sample_timesteps(num_rows: int, shift: float, generator: torch.Generator) -> Tensor:
    """(num_rows,) training times: logit-normal(0, 1), shifted towards noise."""
    normal = torch.randn(num_rows, generator=generator)
    return shift_timesteps(torch.sigmoid(normal), shift)


def initial_noise(seed: int, latent_shape: Sequence[int]) -> Tensor:
    """Standard normal noise of one picture, drawn on the CPU: the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(tuple(latent_shape), generator=generator)


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Point x_t of the path: t (B,), data and noise (B, ...)."""
    t = _like(t, data)
    return (1 - t) * data + t * noise


def target_velocity(data: Tensor, noise: Tensor) -> Tensor:
    """What the denoiser predicts; the same at every t."""
    return noise - data


def predict_clean(x: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Clean data that x_t and its velocity imply: x_t - t * velocity."""
    return x - _like(t, x) * velocity


def guide(cond: Tensor, uncond: Tensor, guidance_scale: Tensor) -> Tensor:
    """Classifier-free guidance, one scale per row (B,); scale 1 returns `cond`."""
    return uncond + _like(guidance_scale, cond) * (cond - uncond)


def guide_edit(
    full: Tensor,
    source_only: Tensor,
    uncond: Tensor,
    guidance_scale: Tensor,
    image_guidance_scale: Tensor,
) -> Tensor:
    """Guidance for edits: `full` has prompt and source, `source_only` no prompt, `uncond` neither.

    Both scales are (B,); image scale 1 needs no `uncond`: pass `source_only` in its place.
    """
    text_part = _like(guidance_scale, full) * (full - source_only)
    return guide(source_only, uncond, image_guidance_scale) + text_part
