"""What can be told about a job at any moment, its result aside."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import ErrorBody
from service.jobs.job import LATE, GenerateParams, Job, Status

_WORKERS_TIME_S = 60  # in which a worker that lives has ended a job that is late


@dataclass(frozen=True)
class JobView:
    """A job, where it stands, and how far it has come.

    `error` is set exactly when the status is failed. `expires_at`: Unix time in seconds at which an
    ended job is forgotten. A job whose deadline has passed has failed, even if no worker is left to
    say so; `expires_at` is then None.
    """

    job: Job
    status: Status
    step: int
    num_steps: int
    expires_at: float | None = None
    error: ErrorBody | None = None

    @classmethod
    def from_stored(cls, stored: Mapping[bytes, bytes], events: Sequence[Any]) -> "JobView":
        """A view from the job's hash and its newest events, newest first."""
        fields = {name.decode(): value.decode() for name, value in stored.items()}
        job, status = Job.from_fields(fields), Status(fields["status"])
        step, num_steps = _progress(job, status, [entry for _, entry in events])
        # Of a job that was put back after its end, both tell of an earlier time.
        expires_at = int(fields["expires_ms"]) / 1000 if status.final else None
        failed = status is Status.FAILED
        reason = ErrorBody.from_dict(json.loads(fields["error"])) if failed else None
        if not status.final and _is_given_up(job, status):
            status, reason = Status.FAILED, LATE
        return cls(
            job=job,
            status=status,
            step=step,
            num_steps=num_steps,
            expires_at=expires_at,
            error=reason,
        )


def _is_given_up(job: Job, status: Status) -> bool:
    """Whether the deadline has passed and no worker is there to say so.

    A worker fails a late job when it takes it, or between two steps if it has it.
    """
    grace_s = _WORKERS_TIME_S if status is Status.RUNNING else 0
    return job.deadline_at is not None and job.deadline_at + grace_s < time.time()


def _progress(
    job: Job, status: Status, newest_first: Sequence[Mapping[bytes, bytes]]
) -> tuple[int, int]:
    """Steps done and in all; a job that was given back has done none."""
    num_steps = job.params.steps if isinstance(job.params, GenerateParams) else 1
    if status is Status.SUCCEEDED:
        return num_steps, num_steps
    for event in newest_first:
        kind = event[b"kind"]
        if kind in (b"queued", b"started"):
            break
        if kind in (b"progress", b"preview"):
            data = json.loads(event[b"data"])
            return data["step"], data["num_steps"]
    return 0, num_steps
