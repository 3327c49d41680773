"""Where the tokenizer stages get their images: stickers, or pictures on disk."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from training.batches import WORLDS, image_batch, random_generator, tokenizer_world
from training.checkpoint import latest_checkpoint
from training.config import AutoencoderConfig
from training.data_files import image_collection
from training.datasets import (
    Batches,
    BatchLoader,
    Collection,
    DataError,
    Skip,
    describe,
)
from training.transforms import Framing

SKIP_LIST = "skipped-{}.jsonl"
DATA_RECORD = "data.json"

_INITIAL_BATCH = 32


class ImageSource(Protocol):
    """Images of every step, and more of them to begin with."""

    def initial(self, num_images: int, number: int) -> Tensor:
        """(num_images, 3, H, W) in [0, 1], other than any step's; `number` chooses among sets."""

    def batch(self, step: int) -> Tensor:
        """This process's images of a step, (B, 3, H, W) in [0, 1]."""


def image_source(
    config: AutoencoderConfig, directory: Path, rows: Sequence[int] | None = None
) -> ImageSource:
    """The images that `config.data` names.

    Args:
        directory: the run's, which keeps the list of skipped files and a record of the data.
        rows: those of each batch that this process computes; default: all.

    Raises:
        DataError: the data are missing, hold nothing usable or changed since the run began.
    """
    if config.data.kind == "stickers":
        return StickerImages(config, rows)
    return FileImages(config, directory, rows)


class StickerImages:
    """Scenes of the tokenizers' world, drawn in the training process."""

    def __init__(self, config: AutoencoderConfig, rows: Sequence[int] | None = None) -> None:
        self._config, self._rows = config, rows
        self._world = tokenizer_world(WORLDS[config.world])

    def initial(self, num_images: int, number: int) -> Tensor:
        """Images of the stream `init`."""
        rng = random_generator(self._config.seed, "init", number)
        return image_batch(self._world, num_images, rng)

    def batch(self, step: int) -> Tensor:
        """Images of the stage's own stream."""
        rng = random_generator(self._config.seed, self._config.stage, step)
        images = image_batch(self._world, self._config.batch_size, rng)
        return images if self._rows is None else images[list(self._rows)]


class FileImages:
    """Pictures of a folder or of shards; what cannot be used is listed in SKIP_LIST."""

    def __init__(
        self, config: AutoencoderConfig, directory: Path, rows: Sequence[int] | None = None
    ) -> None:
        self._config = config
        self._collection = image_collection(config.data)
        record, first_row = directory / DATA_RECORD, rows[0] if rows else 0
        skip_list = directory / SKIP_LIST.format(first_row)  # no two processes have the same row
        if latest_checkpoint(directory) is None:  # what an earlier attempt left is of no use
            skip_list.unlink(missing_ok=True)
            write_record(record, self._collection)
        check_unchanged(record, self._collection)
        self._skips = SkipList(skip_list)
        self._skips.add(self._collection.problems)
        batches = self._batches(config.stage, config.batch_size, rows)
        self._loader = BatchLoader(
            batches, num_steps=config.steps, num_workers=config.data.num_workers
        )

    def _batches(self, stream: str, batch_size: int, rows: Sequence[int] | None = None) -> Batches:
        decoder = self._config.model.decoder
        size = decoder.grid * decoder.patch_size
        return Batches(
            self._collection,
            Framing(rule=self._config.data.crop, image_size=size),
            seed=self._config.seed,
            stream=stream,
            batch_size=batch_size,
            rows=rows,
        )

    def initial(self, num_images: int, number: int) -> Tensor:
        """The first images of another shuffle, the same in every process."""
        num_steps = -(-num_images // _INITIAL_BATCH)
        batches = self._batches(f"init-{number}", _INITIAL_BATCH)
        loader = BatchLoader(
            batches, num_steps=num_steps, num_workers=self._config.data.num_workers
        )
        return torch.cat([self._taken(loader, step) for step in range(num_steps)])[:num_images]

    def batch(self, step: int) -> Tensor:
        """Images of the stage's own shuffle."""
        return self._taken(self._loader, step)

    def _taken(self, loader: BatchLoader, step: int) -> Tensor:
        batch = loader.batch(step)
        self._skips.add(batch.skips)
        return batch.pictures[0]


class SkipList:
    """Samples that could not be used, each once, by reason; kept in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reasons = read_skips([path]) if path.exists() else {}

    def add(self, skips: Sequence[Skip]) -> None:
        """Write down those that are new."""
        new = {skip.name: skip.reason for skip in skips if skip.name not in self._reasons}
        if not new:
            return
        self._reasons |= new
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(
                json.dumps({"name": name, "reason": reason}) + "\n" for name, reason in new.items()
            )


def read_skips(paths: Iterable[Path]) -> dict[str, str]:
    """Reason of each skipped sample by its name."""
    found = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError):  # a killed run may leave half a line
                skip = json.loads(line)
                found[skip["name"]] = skip["reason"]
    return found


def skip_summary(directory: Path) -> str | None:
    """One line on what a run skipped in all its processes, None if nothing."""
    counts = Counter(read_skips(directory.glob(SKIP_LIST.format("*"))).values())
    if not counts:
        return None
    lists = directory / SKIP_LIST.format("*")
    return f"skipped {counts.total()} samples: {describe(counts)}; listed in {lists}"


def _contents(collection: Collection) -> dict[str, int]:
    return dict(zip(collection.units, collection.lengths, strict=True))


def write_record(record: Path, collection: Collection) -> None:
    """Write down how many samples each file or folder holds."""
    record.parent.mkdir(parents=True, exist_ok=True)
    partial = record.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(_contents(collection), indent=1) + "\n", encoding="utf-8")
    partial.replace(record)


def check_unchanged(record: Path, collection: Collection) -> None:
    """Compare with what was written down when the run began.

    The order of samples depends on their number, so a resumed run needs the same ones.

    Raises:
        DataError: names the first file or folder that is gone or differs.
    """
    try:
        then = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{record} cannot be read: {error}; without it nobody knows whether the data are those "
            "the run began with. Give the run another name"
        ) from None
    now = _contents(collection)
    for unit in [*then, *now]:
        if now.get(unit) != then.get(unit):
            raise DataError(
                f"{unit} holds {now.get(unit, 'no')} samples now, {then.get(unit, 'none')} when "
                f"the run began ({record}): put back what was there, or give the run another name"
            )
