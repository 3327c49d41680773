"""Batches of samples on disk; every batch follows from (seed, stream, step) alone.

So the step is all that a resumed run needs, and neither the number of DataLoader workers nor that
of processes changes what step n trains on: each process reads its own rows of the whole batch.
"""

import ctypes
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.batches import random_generator
from training.image_files import SkippedError
from training.transforms import Framing, stack, to_float

NUM_LANES = 8
"""Files are read in this many places by turns, a batch from each: a worker count that divides it
lets each worker read its files in order."""
MAX_TRIES = 1000
"""Unusable samples in a row before a file counts as unusable."""

Indices = NDArray[np.int64]


class DataError(ValueError):
    """Data are missing, unreadable as a whole, or other than when the run began."""


@dataclass(frozen=True)
class Skip:
    """A sample that was not used: its name on disk and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Sample:
    """Pictures of any size (an edit has two: source, target) and their text, or ""."""

    pictures: tuple[Image.Image, ...]
    text: str = ""


@dataclass(frozen=True)
class Batch:
    """pictures: one tensor (B, 3, H, W) per picture of a sample, float in [0, 1]."""

    pictures: tuple[Tensor, ...]
    texts: list[str]
    skips: list[Skip]


class Collection(Protocol):
    """Samples on disk that can be read in any order. It holds names and places, no pictures."""

    @property
    def units(self) -> Sequence[str]:
        """Names of files or folders; a unit in which nothing can be used is an error."""

    @property
    def lengths(self) -> Sequence[int]:
        """Samples of each unit."""

    @property
    def blocks(self) -> Sequence[int]:
        """Lengths of the stretches, over all units in order, that are read one after another."""

    @property
    def problems(self) -> Sequence[Skip]:
        """What was found unusable while the samples were listed."""

    def read(self, unit: int, index: int, rng: np.random.Generator) -> Sample:
        """One sample; `rng` chooses among its texts. Raises SkippedError or DataError."""

    def sample_name(self, unit: int, index: int) -> str:
        """Where a sample is, for the list of skipped ones."""


def epoch_order(blocks: Sequence[int], batch_size: int, rng: np.random.Generator) -> Indices:
    """Every sample's number once, (N,): blocks shuffled, shuffled inside, dealt to the lanes.

    A batch comes from one place of the data and the next batch from another, NUM_LANES in all. This
    does what a buffer of NUM_LANES blocks would, with nothing to hold in memory or to save.
    """
    lengths = np.asarray(blocks, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    order = np.concatenate(
        [starts[block] + rng.permutation(lengths[block]) for block in rng.permutation(len(lengths))]
    )
    dealt = len(order) // (NUM_LANES * batch_size) * NUM_LANES * batch_size
    lanes = order[:dealt].reshape(NUM_LANES, -1, batch_size)
    return np.concatenate([lanes.swapaxes(0, 1).reshape(-1), order[dealt:]])


class Batches(Dataset[Any]):
    """Item n is the batch of step n, uint8, or the DataError that ends the run.

    The error is an item because one raised in a worker arrives with a traceback as its text.
    """

    def __init__(
        self,
        collection: Collection,
        framing: Framing,
        *,
        seed: int,
        stream: str,
        batch_size: int,
        rows: Sequence[int] | Callable[[int], Sequence[int]] | None = None,
    ) -> None:
        """Batches of a shuffle that `seed` and `stream` name.

        Args:
            batch_size: of the whole batch, over all processes.
            rows: those of the whole batch that this process reads, of every step or as a function
                of the step; default: all. Without any the batch holds no pictures.
        """
        self.collection, self.framing = collection, framing
        self.seed, self.stream = seed, stream
        self.batch_size = batch_size
        self.rows = range(batch_size) if rows is None else rows
        self._ends = np.cumsum(collection.lengths)
        self.num_samples = int(self._ends[-1])
        self._orders: dict[int, Indices] = {}

    def __getitem__(self, step: int) -> Batch | DataError:
        first = step * self.batch_size
        skips: list[Skip] = []
        try:
            rows = self.rows(step) if callable(self.rows) else self.rows
            samples = [self._sample(first + row, skips) for row in rows]
        except DataError as error:
            return error
        columns = zip(*(pictures for pictures, _ in samples), strict=True)
        return Batch(tuple(stack(column) for column in columns), [t for _, t in samples], skips)

    def _order(self, epoch: int) -> Indices:
        if epoch not in self._orders:
            self._orders = {key: kept for key, kept in self._orders.items() if key == epoch - 1}
            rng = random_generator(self.seed, self.stream + "-order", epoch)
            self._orders[epoch] = epoch_order(self.collection.blocks, self.batch_size, rng)
        return self._orders[epoch]

    def _sample(self, position: int, skips: list[Skip]) -> tuple[list[Image.Image], str]:
        """Squares and text at a place of the endless sequence.

        What cannot be used is noted, and the next sample of its file stands in for it.
        """
        epoch, offset = divmod(position, self.num_samples)
        number = int(self._order(epoch)[offset])
        unit = int(np.searchsorted(self._ends, number, side="right"))
        length = self.collection.lengths[unit]
        number -= int(self._ends[unit]) - length
        rng = random_generator(self.seed, self.stream, position)
        reasons: Counter[str] = Counter()
        for step in range(min(length, MAX_TRIES)):
            index = (number + step) % length
            try:
                sample = self.collection.read(unit, index, rng)
                return self.framing.apply(sample.pictures, sample.text, rng), sample.text
            except SkippedError as error:
                reasons[error.reason] += 1
                skips.append(Skip(self.collection.sample_name(unit, index), error.reason))
        raise DataError(
            f"{self.collection.units[unit]}: none of {reasons.total()} samples in a row can be "
            f"used ({describe(reasons)}); repair or remove it"
        )


def describe(reasons: Counter[str]) -> str:
    """`3 broken, 1 empty`."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())


def end_with_parent(worker: int = 0) -> None:
    """Let the kernel end a worker process with the one that it works for; any `worker` is alike.

    By itself it would notice a killed parent only seconds later, and until then hold memory, pipes
    and whatever else a fork inherits. Systems other than Linux do not fork workers.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


class BatchLoader:
    """Reads batches ahead in worker processes, in the order of their steps."""

    def __init__(self, batches: Batches, *, num_steps: int, num_workers: int) -> None:
        self._batches = batches
        self._num_steps, self._num_workers = num_steps, num_workers
        self._next_step = 0
        self._iterator: Iterator[Batch | DataError] | None = None

    def batch(self, step: int) -> Batch:
        """The batch of a step below num_steps; any step may be asked for, the next one is fast.

        Raises:
            DataError: a file is gone, or nothing in it can be used.
        """
        if self._iterator is None or step != self._next_step:
            self._iterator = iter(
                DataLoader(
                    self._batches,
                    batch_size=None,  # an item is a batch already
                    sampler=range(step, self._num_steps),
                    num_workers=self._num_workers,
                    worker_init_fn=end_with_parent,
                )
            )
        item = next(self._iterator)
        self._next_step = step + 1
        if isinstance(item, DataError):
            self._iterator = None
            raise item
        return Batch(tuple(to_float(images) for images in item.pictures), item.texts, item.skips)
