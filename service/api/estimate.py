"""When a request would be done, from what the workers say of themselves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.jobs.job import Job, Priority
from service.jobs.standing import Ahead


@dataclass(frozen=True)
class Pace:
    """What all workers of a model do together, as they last announced it.

    row_steps_per_s: sum of the measured rates; step_s: one step on the quickest; row_steps_left: of
    the jobs that they have; max_rows and free_rows: in all, and not occupied. Jobs that a new one
    does not wait for count as none.
    """

    row_steps_per_s: float
    step_s: float
    row_steps_left: float
    max_rows: int
    free_rows: int

    @classmethod
    def of(cls, workers: Iterable[Mapping[str, Any]], priority: Priority) -> "Pace | None":
        """For jobs of a priority: interactive ones do not wait for batch jobs, which pause.

        None unless every worker has measured its pace.
        """
        infos = list(workers)
        rows, left = "active_rows", "row_steps_left"
        if priority == "interactive":
            rows, left = "urgent_rows", "urgent_row_steps_left"
        rates = [float(info.get("row_steps_per_s") or 0) for info in infos]
        steps_s = [float(info.get("step_seconds") or 0) for info in infos]
        if not infos or min(rates) <= 0 or min(steps_s) <= 0:
            return None
        max_rows = [int(info.get("max_rows") or 1) for info in infos]
        active = [int(info.get(rows) or 0) for info in infos]
        return cls(
            row_steps_per_s=sum(rates),
            step_s=min(steps_s),
            row_steps_left=sum(float(info.get(left) or 0) for info in infos),
            max_rows=sum(max_rows),
            free_rows=sum(max(0, m - a) for m, a in zip(max_rows, active, strict=True)),
        )

    def later(self, seconds: float) -> "Pace":
        """After so long a time in which nothing new was begun."""
        left = max(0.0, self.row_steps_left - self.row_steps_per_s * seconds)
        share = left / self.row_steps_left if self.row_steps_left else 0.0
        free_rows = self.max_rows - round((self.max_rows - self.free_rows) * share)
        return Pace(self.row_steps_per_s, self.step_s, left, self.max_rows, free_rows)


def estimate_s(pace: Pace, ahead: Ahead, jobs: Sequence[Job], evaluations: int) -> float:
    """Seconds until the last of a request's equal jobs is done, rather too few than too many.

    A job takes its evaluations one after the other. Jobs that find no free rows start as those
    before them end: at the workers' joint rate, after the first of the running ones has ended.

    Args:
        pace: of the workers.
        ahead: what is handed out before these jobs.
        jobs: of one request.
        evaluations: of each job.
    """
    own = jobs[0].row_steps
    rows = max(1.0, own / evaluations)
    alone_s = evaluations * pace.step_s
    free_rows = pace.free_rows if ahead.row_steps == 0 else 0
    num_at_once = min(len(jobs), int(free_rows / rows))
    if num_at_once == len(jobs):
        return max(alone_s, own * len(jobs) / pace.row_steps_per_s)  # a large step takes longer
    # Of jobs that began at even distances in time, the first ends after this part of the time that
    # all of them take.
    num_running = max(1.0, (pace.max_rows - pace.free_rows) / rows)
    first_end = pace.row_steps_left * 2 / (num_running + 1)
    behind = ahead.row_steps + own * (len(jobs) - num_at_once - 1)
    return (first_end + behind) / pace.row_steps_per_s + alone_s
