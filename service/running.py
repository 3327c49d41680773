"""The jobs that a worker holds, and how much more it can take."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from service import metrics
from service.engine.work import Work
from service.jobs.job import Delivery
from service.log import get_logger

log = get_logger(__name__)

# Rows of a usual job, conditional and unconditional: free rows by this give the jobs to ask for.
_USUAL_ROWS = 2


@dataclass(eq=False)
class RunningJob:
    """One delivery from its arrival to its acknowledgement.

    held_rows: model rows it occupies, 0 once it is denoised; released: the queue no longer wants
    its result, because another worker has the job; ending: its outcome is on its
    way to the queue.
    """

    delivery: Delivery
    work: Work
    held_rows: int
    progress: tuple[int, int] | None = None
    released: bool = False
    ending: bool = False

    @property
    def expired(self) -> bool:
        """True after the job's deadline."""
        deadline_at = self.delivery.job.deadline_at
        return deadline_at is not None and time.time() > deadline_at


class RunningJobs:
    """Jobs by id, in order of arrival.

    Args:
        max_ending: jobs whose outcome the queue has not confirmed; above it no more are taken, so
            that results do not pile up while Redis is away.
    """

    def __init__(self, max_ending: int) -> None:
        self._jobs: dict[str, RunningJob] = {}
        self._max_ending = max_ending

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[RunningJob]:
        return iter(list(self._jobs.values()))

    def get(self, job_id: str) -> RunningJob | None:
        """The job, or None if the worker does not hold it any more."""
        return self._jobs.get(job_id)

    def add(self, delivery: Delivery, work: Work) -> None:
        """Hold a job from now on."""
        self._jobs[work.id] = RunningJob(delivery, work, held_rows=work.num_rows)

    def remove(self, job: RunningJob) -> None:
        """Hold it no longer; a later delivery of the same job is left alone."""
        if self._jobs.get(job.work.id) is job:
            del self._jobs[job.work.id]

    def lose(self, job: RunningJob) -> None:
        """The job is another worker's now: drop it and its outcome."""
        if job.released:
            return
        job.released = True
        self.remove(job)
        metrics.LEASES_LOST.inc()
        log.warning("lease lost", job_id=job.work.id)

    @property
    def held_rows(self) -> int:
        """Rows that are occupied or promised."""
        return sum(job.held_rows for job in self._jobs.values())

    @property
    def interruptible(self) -> list[RunningJob]:
        """Jobs that a cancellation or a deadline can still stop."""
        return [job for job in self if not job.ending]

    def credit(self, max_rows: int) -> int:
        """Jobs to ask the queue for: those that could step at once, and no store of others."""
        if sum(job.ending for job in self._jobs.values()) >= self._max_ending:
            return 0
        return max(0, max_rows - self.held_rows) // _USUAL_ROWS

    def pop_progress(self) -> dict[str, tuple[int, int]]:
        """Latest (step, num_steps) of the jobs that moved since the last call."""
        moved = {}
        for job_id, job in self._jobs.items():
            if job.progress is not None:
                moved[job_id] = job.progress
                job.progress = None
        return moved
