"""Rows of a denoising step: target latents with their prompts and sources, then noised."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.text import END_ID, PAD_ID, UNKNOWN_ID
from models.transport import sample_timesteps
from training.config import DiffusionConfig
from training.latents import LatentPool


@dataclass(frozen=True)
class Rows:
    """Training rows that share one form of context.

    latents (n, C, h, w) of the target; prompts (n, T) ids; coverage (n, h, w), the share of each
    cell that items cover; source latents or None; null_prompt (T,) ids, None for those of the
    small text expert.
    """

    latents: Tensor
    prompts: Tensor
    coverage: Tensor
    source: Tensor | None
    null_prompt: Tensor | None = None

    @staticmethod
    def of(
        pool: LatentPool, index: Tensor, with_source: bool, null_prompt: Tensor | None = None
    ) -> "Rows":
        """Some rows of a pool, with or without their sources."""
        source = pool.source[index] if with_source and pool.source is not None else None
        return Rows(
            pool.latents[index], pool.prompts[index], pool.coverage[index], source, null_prompt
        )


@dataclass(frozen=True)
class NoisedRows:
    """Rows with corrupted prompts, times t (R,) and noise like the latents."""

    latents: Tensor
    prompts: Tensor
    coverage: Tensor
    source: Tensor | None
    t: Tensor
    noise: Tensor

    def part(self, rows: slice, device: torch.device) -> "NoisedRows":
        """Some of the rows, on a device."""
        source = None if self.source is None else self.source[rows].to(device)
        return NoisedRows(
            self.latents[rows].to(device),
            self.prompts[rows].to(device),
            self.coverage[rows].to(device),
            source,
            self.t[rows].to(device),
            self.noise[rows].to(device),
        )


def own_rows(parts: Sequence[slice], num_rows: int) -> list[int]:
    """Rows of so many that a process computes in its `Processes.parts`, in order."""
    return sorted({row for part in parts for row in range(num_rows)[part]})


def spread(values: Tensor, rows: Sequence[int], num_rows: int) -> Tensor:
    """(num_rows, ...) with values (n, ...) at their rows; the others, of other processes, are 0."""
    whole = values.new_zeros(num_rows, *values.shape[1:])
    whole[list(rows)] = values
    return whole


def null_prompts(prompts: Tensor) -> Tensor:
    """Ids of the empty prompt, one row per row of prompts (R, T), for the small text expert."""
    empty = torch.full_like(prompts, PAD_ID)
    empty[:, 0] = END_ID
    return empty


def corrupt_prompts(
    prompts: Tensor,
    dropout: float,
    unknown: float,
    generator: torch.Generator,
    null_prompt: Tensor | None = None,
) -> Tensor:
    """Drop whole prompts with probability `dropout`, single words to <unk> with `unknown`.

    A pretrained vocabulary, whose `null_prompt` is given, spells every word and has no <unk>.
    """
    if null_prompt is None:
        words = torch.rand(prompts.shape, generator=generator) < unknown
        prompts = torch.where(words & (prompts > END_ID), UNKNOWN_ID, prompts)
        empty = null_prompts(prompts)
    else:
        empty = null_prompt.expand_as(prompts)
    dropped = torch.rand(len(prompts), 1, generator=generator) < dropout
    return torch.where(dropped, empty, prompts)


def noise_rows(
    config: DiffusionConfig, rows: Rows, shift: float, generator: torch.Generator
) -> NoisedRows:
    """The rows with what the step draws for them, on the CPU."""
    prompts = corrupt_prompts(
        rows.prompts, config.text_dropout, config.unknown_share, generator, rows.null_prompt
    )
    t = sample_timesteps(len(prompts), shift, generator)
    noise = torch.randn(rows.latents.shape, generator=generator)
    return NoisedRows(rows.latents, prompts, rows.coverage, rows.source, t, noise)
