"""Images or latents of many jobs on their way through encode or decode, a slice at a time."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from service.engine.scheduler import FairQueue
from service.engine.work import Work


@dataclass(frozen=True, eq=False)
class Piece:
    """One image or one map of latents of a job's batch.

    size: its area as a multiple of that of the model's own size; key: pieces of one key that is
    not None are the same.
    """

    job_id: str
    index: int
    tensor: Tensor
    size: float = 1.0
    key: Hashable = None


def by_shape(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces in groups of one shape, which can be stacked."""
    groups: dict[tuple[int, ...], list[Piece]] = {}
    for piece in pieces:
        groups.setdefault(tuple(piece.tensor.shape), []).append(piece)
    return list(groups.values())


@dataclass(eq=False)
class Pieces:
    """A job's batch: what is done of it, and the seconds that took by stage."""

    work: Work
    count: int
    timings_s: dict[str, float]
    done: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """True when every piece is done."""
        return len(self.done) == self.count

    def stacked(self) -> tuple[Tensor, ...]:
        """The results in order, each stacked to (count, ...)."""
        ordered = [self.done[index] for index in range(self.count)]
        return tuple(torch.stack(parts) for parts in zip(*ordered, strict=True))


class SliceQueue:
    """Jobs that wait for one stage; their pieces are taken in turn and put together again.

    Args:
        stage: its name.
        own: rows and columns of a piece at the model's own size.
    """

    def __init__(self, stage: Literal["encode", "decode"], own: tuple[int, int]) -> None:
        self.stage = stage
        self._own_area = own[0] * own[1]
        self._waiting: FairQueue[str, Piece] = FairQueue()
        self._jobs: dict[str, Pieces] = {}

    @property
    def is_empty(self) -> bool:
        """True when no piece waits."""
        return self._waiting.is_empty

    def __iter__(self) -> Iterator[Work]:
        return iter([job.work for job in self._jobs.values()])

    def put(
        self, work: Work, batch: Tensor, timings_s: dict[str, float], key: Hashable = None
    ) -> None:
        """Queue a batch (B, ...); results are handed back as one job."""
        self._jobs[work.id] = Pieces(work, len(batch), timings_s)
        size = batch.shape[-2] * batch.shape[-1] / self._own_area
        pieces = [Piece(work.id, index, part, size, key) for index, part in enumerate(batch)]
        self._waiting.put(work.id, pieces)

    def take(self, count: int) -> list[Piece]:
        """At most `count` pieces, one job after another, and no more than `count` pieces of the
        model's own size would cover; a piece that is larger comes alone.
        """
        taken = self._waiting.take(count, count, lambda piece: piece.size)
        return [piece for _, piece in taken]

    def drop(self, job_id: str) -> None:
        """Forget a job and its results."""
        self._waiting.drop(job_id)
        self._jobs.pop(job_id, None)

    def store(
        self, pieces: Sequence[Piece], results: Sequence[tuple[Tensor, ...]], seconds: float
    ) -> list[Pieces]:
        """Keep the results of one slice; the jobs that are complete now.

        Pieces of jobs dropped in between are ignored.
        """
        touched: dict[str, Pieces] = {}
        for piece, result in zip(pieces, results, strict=True):
            job = self._jobs.get(piece.job_id)
            if job is not None:
                job.done[piece.index] = result
                touched[piece.job_id] = job
        for job in touched.values():
            job.timings_s[self.stage] = job.timings_s.get(self.stage, 0.0) + seconds
        complete = [job for job in touched.values() if job.complete]
        for job in complete:
            self._jobs.pop(job.work.id)
        return complete
