"""The jobs that a worker holds, and how much more it can take."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from service import metrics
from service.engine.scheduler import MIN_ROWS
from service.engine.work import PictureWork, Stepped, Tick, Work
from service.jobs.job import Delivery, GenerateParams
from service.log import get_logger
from service.tracing import JobTrace

log = get_logger(__name__)

# Rows of a usual job, conditional and unconditional: free rows by this give the jobs to ask for.
_USUAL_ROWS = 2
# A job that has so many steps left counts as gone: another one is fetched and made ready meanwhile,
# or its rows would stay empty for a step.
_LAST_STEPS = 2
# Of a device's rows, asked for at once: what arrives together spreads over the free workers.
_SHARE_AT_ONCE = 8


@dataclass(eq=False)
class RunningJob:
    """One delivery from its arrival to its acknowledgement.

    held_rows: model rows it occupies, 0 once it is denoised; work: None until its payload is read;
    steps: done and in all, None before the first; moved: they have changed since they were last
    published; released: the queue no longer wants its result, because it is not this worker's any
    more; ending: its outcome is on its way to the queue; hopeless: it was ended for its deadline;
    previews: the sending of the latest one, which awaits those before it; trace: where its stages
    are recorded.
    """

    delivery: Delivery
    held_rows: int
    work: Work | None = None
    steps: tuple[int, int] | None = None
    moved: bool = False
    released: bool = False
    ending: bool = False
    hopeless: bool = False
    previews: asyncio.Task[None] | None = None
    trace: JobTrace = field(default_factory=JobTrace)

    @property
    def id(self) -> str:
        """The job's id."""
        return self.delivery.job.id

    @property
    def urgent(self) -> bool:
        """True for a job that does not share with others what batch jobs leave."""
        return self.delivery.job.priority == "interactive"

    @property
    def expired(self) -> bool:
        """True after the job's deadline, and for one that could not be met."""
        if self.hopeless:
            return True
        deadline_at = self.delivery.job.deadline_at
        return deadline_at is not None and time.time() > deadline_at

    @property
    def begun(self) -> bool:
        """False for a picture that has not made a step: nothing is lost if another makes it."""
        picture = self.work is None or isinstance(self.work, PictureWork)
        return self.ending or self.steps is not None or not picture

    @property
    def rows_to_come(self) -> int:
        """Rows that it occupies for more than a moment."""
        if self.steps is not None and self.steps[1] - self.steps[0] <= _LAST_STEPS:
            return 0
        return self.held_rows

    @property
    def row_steps_left(self) -> int:
        """Row-steps that are still to be computed, by the job's cost and how far it is."""
        if not self.held_rows:
            return 0
        done, num_steps = self.steps or (0, 1)
        return round(self.delivery.job.row_steps * (1 - done / num_steps))


@dataclass(frozen=True)
class Room:
    """What a worker can take.

    credit: jobs of any priority; urgent_credit: interactive ones, to which batch jobs give way, as
    many or more; places: free rows, of which it asks for a part at a time.
    """

    credit: int
    urgent_credit: int
    places: int


class RunningJobs:
    """Jobs by id, in order of arrival.

    Args:
        max_done: jobs without rows, whose picture is to be decoded, written and sent; above it no
            more are taken, so that results do not pile up while Redis is away.
    """

    def __init__(self, max_done: int) -> None:
        self._jobs: dict[str, RunningJob] = {}
        self._max_done = max_done

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[RunningJob]:
        return iter(list(self._jobs.values()))

    def get(self, job_id: str) -> RunningJob | None:
        """The job, or None if the worker does not hold it any more."""
        return self._jobs.get(job_id)

    def add(self, delivery: Delivery) -> RunningJob:
        """Hold a job from now on; what rows it needs is known when it is `prepared`."""
        picture = isinstance(delivery.job.params, GenerateParams)
        job = RunningJob(delivery, held_rows=MIN_ROWS if picture else 1)
        self._jobs[job.id] = job
        return job

    def prepared(self, job: RunningJob, work: Work) -> None:
        """The job's payload is read."""
        job.work = work
        job.held_rows = work.num_rows

    def remove(self, job: RunningJob) -> None:
        """Hold it no longer; a later delivery of the same job is left alone."""
        if self._jobs.get(job.id) is job:
            del self._jobs[job.id]
            job.trace.end()

    def release(self, job: RunningJob) -> None:
        """It is not this worker's any more: drop it and its outcome."""
        job.released = True
        job.trace.outcome = "released"
        self.remove(job)

    def lose(self, job: RunningJob) -> None:
        """Another worker has it, because the lease ended."""
        if job.released:
            return
        self.release(job)
        metrics.LEASES_LOST.inc()
        log.warning("lease lost", **job.delivery.job.ids)

    @property
    def held_rows(self) -> int:
        """Rows that are occupied or promised."""
        return sum(job.held_rows for job in self._jobs.values())

    @property
    def row_steps_left(self) -> int:
        """Row-steps of all jobs that are still to be computed."""
        return sum(job.row_steps_left for job in self._jobs.values())

    @property
    def interruptible(self) -> list[RunningJob]:
        """Jobs that a cancellation can still stop."""
        return [job for job in self if not job.ending]

    def room(self, max_rows: int) -> Room:
        """What to ask the queue for: jobs that could step at once, and no store of others."""
        if sum(job.held_rows == 0 for job in self._jobs.values()) >= self._max_done:
            return Room(0, 0, 0)
        urgent_rows = rows = 0
        for job in self._jobs.values():
            rows += job.rows_to_come
            urgent_rows += job.rows_to_come if job.urgent else 0
        at_once = max(1, max_rows // _SHARE_AT_ONCE)
        return Room(
            credit=min(at_once, max(0, max_rows - rows) // _USUAL_ROWS),
            urgent_credit=min(at_once, max(0, max_rows - urgent_rows) // _USUAL_ROWS),
            places=max(0, max_rows - rows),
        )

    def pop_progress(self) -> dict[str, tuple[int, int]]:
        """Latest (step, num_steps) of the jobs that moved since the last call."""
        moved = {}
        for job_id, job in self._jobs.items():
            if job.moved and job.steps is not None:
                moved[job_id] = job.steps
                job.moved = False
        return moved


def has_news(tick: Tick) -> bool:
    """Whether more has happened than that jobs are some steps further: one has ended or is about
    to, so that there is room, or there is something to send.
    """
    return any(
        not isinstance(event, Stepped) or event.num_steps - event.step == _LAST_STEPS
        for event in tick.events
    )
