"""What a denoiser must know of its data before it begins: latent statistics and vocabulary."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from models.autoencoder import RPiAE
from models.text import SPECIAL_TOKENS, split_words
from training.datasets import Batch, DataError
from training.files import Files
from training.processes import Processes

FACTS_NAME = "facts.json"
_READ_BATCH = 32
_ENCODE_BATCH = 64


def latent_statistics(latents: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Mean (C,) per channel, and std (C,): per channel, or one value for all.

    One scale keeps the channels' relative sizes, so that fine detail does not weigh as much as
    layout in the loss.
    """
    mean = latents.mean((0, 2, 3))
    centred = latents - mean[:, None, None]
    if per_channel:
        return mean, centred.square().mean((0, 2, 3)).sqrt()
    return mean, centred.square().mean().sqrt().expand_as(mean)


@torch.no_grad()
def encode_images(model: RPiAE, images: Tensor, processes: Processes) -> Tensor:
    """Posterior means (B, C, h, w) of images (B, 3, H, W), normalized by the model, on the CPU."""
    parts = []
    for part in images.split(_ENCODE_BATCH):
        with processes.autocast():
            mean = model.encode(part.to(processes.device)).latent_dist.mean
        parts.append(mean.float().cpu())
    return torch.cat(parts)


@dataclass(frozen=True)
class Facts:
    """Mean and std of each latent channel; words: vocabulary of a small text expert, if any."""

    mean: list[float]
    std: list[float]
    words: list[str] | None = None

    def write(self, directory: Path) -> None:
        """Keep them in a run's directory, for its other processes."""
        partial = directory / f"{FACTS_NAME}.{os.getpid()}"
        partial.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        partial.replace(directory / FACTS_NAME)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """What `write` wrote."""
        return cls(**json.loads((directory / FACTS_NAME).read_text(encoding="utf-8")))


def measure(
    batches: Iterable[Batch],
    encode: Callable[[Tensor], Tensor],
    *,
    per_channel: bool,
    num_words: int | None,
) -> Facts:
    """Statistics of the batches' last pictures, and their texts' commonest words.

    Args:
        encode: images to latents that are not normalized.
        per_channel: see `latent_statistics`.
        num_words: size of the vocabulary with its special tokens; None: none is wanted.
    """
    count, sums, squares = 0, torch.zeros(1), torch.zeros(1)
    words: Counter[str] = Counter()
    for batch in batches:
        latents = encode(batch.pictures[-1]).double()
        count += latents[:, 0].numel()
        sums = sums + latents.sum((0, 2, 3))
        squares = squares + latents.square().sum((0, 2, 3))
        for text in batch.texts:
            words.update(split_words(text))
    mean = sums / count
    variance = squares / count - mean.square()
    if not per_channel:
        variance = variance.mean().expand_as(mean)
    vocabulary = None if num_words is None else commonest_words(words, num_words)
    return Facts(mean.tolist(), variance.sqrt().tolist(), vocabulary)


def commonest_words(counts: Counter[str], num_words: int) -> list[str]:
    """Special tokens, then the words that fit, sorted; ties go to the first in the alphabet."""
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return [*SPECIAL_TOKENS, *sorted(ranked[: num_words - len(SPECIAL_TOKENS)])]


def measure_files(
    files: Files,
    model: RPiAE,
    processes: Processes,
    *,
    seed: int,
    num_images: int,
    per_channel: bool,
    num_words: int | None,
) -> Facts:
    """Facts of the first pictures of a shuffle of their own, in whole batches.

    Raises:
        DataError: nothing usable, or latents that are all the same.
    """
    num_steps = -(-num_images // _READ_BATCH)
    read = files.reader(seed=seed, stream="statistics", batch_size=_READ_BATCH, num_steps=num_steps)
    facts = measure(
        (read(step) for step in range(num_steps)),
        lambda images: encode_images(model, images, processes),
        per_channel=per_channel,
        num_words=num_words,
    )
    check_spread_of(facts.std)
    return facts


def shared_facts(
    files: Files,
    directory: Path,
    model: RPiAE,
    processes: Processes,
    *,
    seed: int,
    num_images: int,
    per_channel: bool,
    num_words: int | None,
) -> Facts:
    """`measure_files` by the first process, for all; statistics 0 and 1 if num_images is 0."""
    if num_images == 0:
        channels = model.latent_shape[0]
        return Facts([0.0] * channels, [1.0] * channels)
    with processes.first_before_others():
        if processes.is_first:
            measure_files(
                files,
                model,
                processes,
                seed=seed,
                num_images=num_images,
                per_channel=per_channel,
                num_words=num_words,
            ).write(directory)
        return Facts.read(directory)


def check_spread_of(std: Sequence[float]) -> None:
    """Raises DataError where a standard deviation is zero or no number."""
    if not min(std) > 0:
        raise DataError(
            f"latents of the first pictures have a standard deviation of {min(std)}: "
            "they are all alike, or the tokenizer gives no numbers"
        )
