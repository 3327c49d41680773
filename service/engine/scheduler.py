"""Which jobs step together and whose images are next. No torch, no I/O."""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

MIN_ROWS = 3  # the most that one job needs: a guided edit


@dataclass(eq=False, kw_only=True)
class DenoiseJob:
    """One picture on its way from noise to latents.

    num_rows: model rows that a step costs at most, 1 to 3 (conditional and guidance rows);
    num_steps: velocity calls that the job takes part in, one for each step here, so some samplers
    have more than the request asked for; urgency: lower is served first; deadline_at: Unix seconds
    or None; step: index of the next step.
    """

    id: str
    num_rows: int
    num_steps: int
    urgency: int = 0
    deadline_at: float | None = None
    step: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.num_rows <= MIN_ROWS:
            raise ValueError(f"num_rows must be 1 to {MIN_ROWS}, got {self.num_rows}")
        if not 0 <= self.step < self.num_steps:
            raise ValueError(f"step must be in [0, {self.num_steps}), got {self.step}")

    @property
    def job_id(self) -> str:
        """The job that it belongs to, as of a piece of an image."""
        return self.id

    @property
    def rows_now(self) -> int:
        """Model rows of the next step, at most `num_rows`."""
        return self.num_rows


J = TypeVar("J", bound=DenoiseJob)


class Scheduler(Generic[J]):
    """Chooses at each step anew who steps; the others keep their state and go on later.

    Rows go to jobs by urgency, then earliest deadline, then arrival; who does not fit any more
    leaves its place to those behind, and has it again before them in the next step. While jobs of
    both classes want rows, those that are not urgent get a share of the row-steps. Every job fits
    alone, so the first one always steps and none waits for ever.

    Args:
        max_rows: most rows of one step.
        batch_share: of the row-steps, for jobs of an urgency above 0.
    """

    def __init__(self, max_rows: int, *, batch_share: float = 0.25) -> None:
        self._jobs: dict[str, J] = {}  # in the order in which they are served
        self._batch_share = batch_share
        self._owed = 0.0  # row-steps that the batch class has not had yet
        self._contended = False
        self.max_rows = 0
        self.limit_rows(max_rows)

    def limit_rows(self, max_rows: int) -> None:
        """Change the most rows of one step, for example after running out of memory."""
        if max_rows < MIN_ROWS:
            raise ValueError(f"max_rows must fit one job ({MIN_ROWS} rows), got {max_rows}")
        self.max_rows = max_rows

    def __iter__(self) -> Iterator[J]:
        return iter(list(self._jobs.values()))

    @property
    def is_empty(self) -> bool:
        """True when there is no job."""
        return not self._jobs

    def add(self, job: J) -> None:
        """Let a job take part from the next step on."""
        jobs = sorted([*self._jobs.values(), job], key=_place)
        self._jobs = {each.id: each for each in jobs}

    def drop(self, job_id: str) -> None:
        """Forget a job: it was cancelled, or it failed."""
        self._jobs.pop(job_id, None)

    def next_batch(self) -> list[J]:
        """Jobs of the next step, whose rows are `max_rows` at most; asked once for each step."""
        jobs = list(self._jobs.values())
        urgent = [job for job in jobs if not job.urgency]
        patient = jobs[len(urgent) :]
        both = bool(urgent and patient)
        self._contended = both and sum(job.rows_now for job in jobs) > self.max_rows
        if not self._contended:
            self._owed = 0.0
            return self._fill(jobs)
        self._owed = min(self._owed + self._batch_share * self.max_rows, self.max_rows)
        first: list[J] = []
        rows = 0
        for job in patient:  # in order: one of many rows saves up for them
            rows += job.rows_now
            if rows > self._owed:
                break
            first.append(job)
        return self._fill([*first, *urgent, *patient[len(first) :]])

    def advance(self, batch: Iterable[J]) -> list[J]:
        """Count one step for each job; remove and return those that are done."""
        done = []
        for job in batch:
            if self._contended and job.urgency > 0:
                self._owed = max(0.0, self._owed - job.rows_now)
            job.step += 1
            if job.step == job.num_steps:
                done.append(job)
                self.drop(job.id)
        return done

    def _fill(self, jobs: Iterable[J]) -> list[J]:
        """Those that fit, in order."""
        batch: list[J] = []
        free = self.max_rows
        for job in jobs:
            rows = job.rows_now
            if rows <= free:
                batch.append(job)
                free -= rows
        return batch


def _place(job: DenoiseJob) -> tuple[bool, float]:
    """Among the others, those of the same place by arrival."""
    return job.urgency > 0, inf if job.deadline_at is None else job.deadline_at


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class FairQueue(Generic[K, V]):
    """Items of many owners, handed out one owner after another: a large batch delays nobody."""

    def __init__(self) -> None:
        self._items: OrderedDict[K, deque[V]] = OrderedDict()

    @property
    def is_empty(self) -> bool:
        """True when nothing waits."""
        return not self._items

    def put(self, owner: K, items: Iterable[V]) -> None:
        """Append items to their owner's line."""
        line = deque(items)
        if line:
            self._items.setdefault(owner, deque()).extend(line)

    def take(
        self, count: int, budget: float = inf, cost: Callable[[V], float] = lambda _: 0.0
    ) -> list[tuple[K, V]]:
        """At most `count` items with their owners, in turn.

        It ends before the item with which the costs would exceed the budget, but gives one.
        """
        taken: list[tuple[K, V]] = []
        while self._items and len(taken) < count:
            owner, line = next(iter(self._items.items()))
            budget -= cost(line[0])
            if taken and budget < 0:
                break
            del self._items[owner]
            taken.append((owner, line.popleft()))
            if line:
                self._items[owner] = line
        return taken

    def drop(self, owner: K) -> None:
        """Forget everything that an owner still waits for."""
        self._items.pop(owner, None)
