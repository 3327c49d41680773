"""Rows of files: captioned pictures and edits, read and encoded step by step.

The first edits of a batch lose their source, as many as chance says: samples come shuffled, so
they are as good as any. Each process reads and encodes its own rows; those of the others are
zeros, which nobody computes with.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.autoencoder import RPiAE
from training.batches import random_generator
from training.config import DiffusionConfig
from training.data_config import EDIT_KINDS
from training.data_files import captioned_collection, edit_collection
from training.datasets import Batch
from training.files import Files
from training.latent_facts import encode_images
from training.processes import Processes
from training.prompts import Tokenizer, null_prompt
from training.rows import Rows, own_rows, spread
from training.run import Run


@dataclass(frozen=True)
class BatchPlan:
    """Which samples of a step become which rows, and which of them this process computes.

    A step has rows without a source (captions, then the edits that lost theirs) and rows with it.
    parts: slices of each kind of rows that the process computes, see `Processes.parts`.
    """

    seed: int
    num_captions: int
    num_edits: int
    source_dropout: float
    parts: tuple[slice, ...]

    def num_dropped(self, step: int) -> int:
        """Edits that lose their source."""
        rng = random_generator(self.seed, "diffusion-sources", step)
        return int((rng.random(self.num_edits) < self.source_dropout).sum())

    def plain_rows(self, step: int) -> list[int]:
        """Own rows among those without a source."""
        return own_rows(self.parts, self.num_captions + self.num_dropped(step))

    def source_rows(self, step: int) -> list[int]:
        """Own rows among those with a source."""
        return own_rows(self.parts, self.num_edits - self.num_dropped(step))

    def captions(self, step: int) -> list[int]:
        """Own samples of the step's batch of captions."""
        return [row for row in self.plain_rows(step) if row < self.num_captions]

    def edits(self, step: int) -> list[int]:
        """Own samples of the step's batch of edits, those without a source first."""
        dropped = [row - self.num_captions for row in self.plain_rows(step)]
        first = self.num_dropped(step)
        kept = [first + row for row in self.source_rows(step)]
        return [row for row in dropped if row >= 0] + kept


class FileSources:
    """The captions and edits that a config names; either may be None.

    Raises:
        DataError: they are missing, hold nothing usable or changed since the run began.
    """

    def __init__(self, config: DiffusionConfig, run: Run, rank: int) -> None:
        def files(data_name: str, collect: Callable) -> Files:
            data = getattr(config, data_name)
            return Files(
                collect(data),
                data,
                config.model.image_size,
                directory=run.directory,
                name=data_name,
                rank=rank,
            )

        alone = config.data.kind in EDIT_KINDS
        beside = config.edit_data.kind in EDIT_KINDS
        self.captions = None if alone else files("data", captioned_collection)
        self.edits = None
        if alone or beside:
            self.edits = files("data" if alone else "edit_data", edit_collection)

    @property
    def first(self) -> Files:
        """The one whose pictures give the latent statistics."""
        source = self.captions or self.edits
        assert source is not None
        return source


class FileRows:
    """What a step reads from disk, encoded by a model whose statistics are set."""

    def __init__(
        self,
        config: DiffusionConfig,
        sources: FileSources,
        model: RPiAE,
        tokenizer: Tokenizer,
        processes: Processes,
    ) -> None:
        self._model, self._tokenizer, self._processes = model, tokenizer, processes
        self._null_prompt = null_prompt(tokenizer)
        num_edits = round(config.edit_share * config.batch_size)
        self._plan = BatchPlan(
            config.seed,
            config.batch_size - num_edits,
            num_edits,
            config.source_dropout,
            tuple(processes.parts()),
        )

        def reader(
            files: Files | None, name: str, count: int, rows: Callable[[int], Sequence[int]]
        ) -> Callable[[int], Batch] | None:
            if files is None or count == 0:
                return None
            return files.reader(
                seed=config.seed,
                stream=f"diffusion-{name}",
                batch_size=count,
                num_steps=config.steps,
                rows=rows,
            )

        plan = self._plan
        self._captions = reader(sources.captions, "captions", plan.num_captions, plan.captions)
        self._edits = reader(sources.edits, "edits", plan.num_edits, plan.edits)

    def batch(self, step: int) -> list[Rows]:
        """The rows of a step: without a source, then with one; only those that there are."""
        plan = self._plan
        plain, sourced = plan.plain_rows(step), plan.source_rows(step)
        nothing = Batch((), [], [])
        captions = self._captions(step) if self._captions else nothing
        edits = self._edits(step) if self._edits else nothing
        num_bare = len(edits.texts) - len(sourced)  # edits without their source
        sources = [images[num_bare:] for images in edits.pictures[:1]]
        targets = [*captions.pictures, *edits.pictures[1:]]
        latents = self._encode([*targets, *sources])
        prompts = self._tokenizer.encode([*captions.texts, *edits.texts])
        num_plain, ends = len(plain), len(prompts)
        groups = (
            (plan.num_captions + plan.num_dropped(step), plain, slice(num_plain), None),
            (
                plan.num_edits - plan.num_dropped(step),
                sourced,
                slice(num_plain, ends),
                latents[ends:],
            ),
        )
        return [
            self._rows(count, own, latents[place], prompts[place], source)
            for count, own, place, source in groups
            if count
        ]

    def _encode(self, images: Sequence[Tensor]) -> Tensor:
        """(N, C, h, w) of all images one after another."""
        if not sum(len(part) for part in images):
            return torch.zeros(0, *self._model.latent_shape)
        return encode_images(self._model, torch.cat(list(images)), self._processes)

    def _rows(
        self, count: int, own: list[int], latents: Tensor, prompts: Tensor, source: Tensor | None
    ) -> Rows:
        """`count` rows of which the `own` ones are filled."""
        return Rows(
            spread(latents, own, count),
            spread(prompts, own, count),
            torch.zeros(count, *self._model.latent_shape[1:]),
            None if source is None else spread(source, own, count),
            self._null_prompt,
        )
