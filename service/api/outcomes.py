"""How requests end: the error of a job that came to nothing, and what metrics count it as."""

from typing import Literal, TypeAlias

from service.api.error_response import CLIENT_CLOSED_REQUEST
from service.errors import (
    DeadlineExceeded,
    ErrorBody,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    ServiceError,
)
from service.jobs.job import Status

Outcome: TypeAlias = Literal[
    "ok", "client_error", "limited", "rejected", "cancelled", "expired", "failed", "unavailable"
]
_OUTCOMES: dict[int, Outcome] = {
    CLIENT_CLOSED_REQUEST: "cancelled",
    429: "rejected",
    503: "unavailable",
    504: "expired",
}


def outcome_of(status: int, *, limited: bool) -> Outcome:
    """The label `outcome` of a request to an endpoint that runs the model.

    ok: it has its answer, or with `Prefer: respond-async` its job. client_error: its own fault, 4xx
    but what follows. limited: 429, the caller's own rate, or too many jobs of its own. rejected:
    429, the queue is full. cancelled: the client left, or somebody cancelled the job. expired: 504,
    too late, or known beforehand to be. failed: 500, or another error of ours. unavailable: 503, no
    worker, no Redis, or the gateway is shutting down.

    Args:
        status: of the answer, or what it would have been had its stream not begun.
        limited: the caller's own limits refused it.
    """
    if status < 400:
        return "ok"
    if limited:
        return "limited"
    return _OUTCOMES.get(status, "client_error" if status < 500 else "failed")


def error_of(job_id: str, status: Status, error: ErrorBody | None) -> ServiceError | None:
    """The error of a job that failed or was cancelled; None while it runs or when it succeeded."""
    if status is Status.CANCELLED:
        return JobCancelled("the job was cancelled: send the request again to have it after all")
    if status is not Status.FAILED:
        return None
    if error is not None and error.code == DeadlineExceeded.default_code:
        return DeadlineExceeded(error.message)
    failed = JobFailed(job_id, error or ErrorBody("its reason was not recorded"))
    if failed.type == InvalidRequest.default_type:
        failed.status = 422  # the request's own fault, which a repeat does not mend
    return failed
