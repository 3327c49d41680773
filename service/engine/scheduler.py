"""Which jobs step together and whose images are next. No torch, no I/O."""

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

MIN_ROWS = 3  # the most that one job needs: a guided edit


@dataclass(eq=False, kw_only=True)
class DenoiseJob:
    """One picture on its way from noise to latents.

    num_rows: model rows that a step costs, 1 to 3 (conditional and guidance rows); num_steps:
    velocity calls that the job takes part in, one for each step here, so some samplers have more
    than the request asked for; urgency: lower is served first; deadline_at: Unix seconds or None;
    step: index of the next step.
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


J = TypeVar("J", bound=DenoiseJob)


class Scheduler(Generic[J]):
    """Rows for denoising jobs: once a job has rows, it keeps them until it is done.

    Waiting jobs get free rows by urgency, then earliest deadline, then arrival. The first that
    does not fit holds back those behind it, so small jobs never starve a large one.
    """

    def __init__(self, max_rows: int) -> None:
        self._waiting: list[tuple[int, float, int, J]] = []
        self._active: OrderedDict[str, J] = OrderedDict()  # least recently stepped first
        self._num_added = 0
        self.max_rows = 0
        self.limit_rows(max_rows)

    def limit_rows(self, max_rows: int) -> None:
        """Change the most rows of one step, for example after running out of memory."""
        if max_rows < MIN_ROWS:
            raise ValueError(f"max_rows must fit one job ({MIN_ROWS} rows), got {max_rows}")
        self.max_rows = max_rows

    @property
    def active_rows(self) -> int:
        """Rows of the jobs that step now."""
        return sum(job.num_rows for job in self._active.values())

    @property
    def is_empty(self) -> bool:
        """True when no job waits or steps."""
        return not self._waiting and not self._active

    def add(self, job: J) -> None:
        """Let a job wait for rows."""
        deadline_at = float("inf") if job.deadline_at is None else job.deadline_at
        self._waiting.append((job.urgency, deadline_at, self._num_added, job))
        self._num_added += 1
        self._waiting.sort(key=lambda entry: entry[:3])

    def drop(self, job_id: str) -> None:
        """Forget a job: it was cancelled, or it failed."""
        self._active.pop(job_id, None)
        self._waiting = [entry for entry in self._waiting if entry[3].id != job_id]

    def admit(self) -> list[J]:
        """Give free rows to waiting jobs; those that step from now on."""
        admitted: list[J] = []
        free = self.max_rows - self.active_rows
        while self._waiting and self._waiting[0][3].num_rows <= free:
            job = self._waiting.pop(0)[3]
            self._active[job.id] = job
            admitted.append(job)
            free -= job.num_rows
        return admitted

    def next_batch(self) -> list[J]:
        """Jobs of the next step: all active ones, or, if the limit has sunk below their rows,
        as many as fit of those that waited longest.
        """
        batch: list[J] = []
        rows = 0
        for job in self._active.values():
            rows += job.num_rows
            if rows > self.max_rows:
                break
            batch.append(job)
        return batch

    def advance(self, batch: Iterable[J]) -> list[J]:
        """Count one step for each job; remove and return those that are done."""
        done = []
        for job in batch:
            job.step += 1
            if job.step == job.num_steps:
                done.append(self._active.pop(job.id))
            else:
                self._active.move_to_end(job.id)
        return done


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
