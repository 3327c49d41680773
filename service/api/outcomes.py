"""What a job that came to nothing is answered with."""

from service.errors import (
    DeadlineExceeded,
    ErrorBody,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    ServiceError,
)
from service.jobs.job import Status


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
