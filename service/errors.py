"""Errors that callers of the service see: one tree, which the gateway maps to HTTP in one place.

ServiceError                 message, status, OpenAI `type` and `code`, param, retry_after_s
  InvalidRequest       400   malformed; 413 too large, 415 not an image, 422 out of range
  Unauthorized         401
  NotFound             404
  Conflict             409   idempotency key used with another body
  RateLimited          429   this caller's rate
  Overloaded           429   the queue is full
  NoWorker             503   no live worker for this model
  QueueUnavailable     503   Redis does not answer
  JobFailed            500   carries the job's error, never a traceback
  JobCancelled         499   somebody cancelled it
  DeadlineExceeded     504
BackendError                 fails one job, the worker lives on
  OutOfMemory                the batch is retried in halves
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class ErrorBody:
    """What a caller reads about an error; the fields of OpenAI's error object."""

    message: str
    type: str = "server_error"
    code: str = "internal_error"
    param: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ErrorBody":
        return cls(**fields)


class ServiceError(Exception):
    """Base of all errors that have an HTTP status. The message is shown to the caller.

    Args:
        message: what is wrong, with the values, and what to change.
        status: overrides the class's status.
        code: overrides the class's code.
        param: the request's field that is at fault.
        retry_after_s: seconds after which a repeat may succeed.
    """

    default_status: ClassVar[int] = 500
    default_type: ClassVar[str] = "server_error"
    default_code: ClassVar[str] = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = self.default_status if status is None else status
        self.type = self.default_type
        self.code = self.default_code if code is None else code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def body(self) -> ErrorBody:
        return ErrorBody(message=self.message, type=self.type, code=self.code, param=self.param)


class InvalidRequest(ServiceError):
    """The request is malformed or out of range; `param` names the field."""

    default_status = 400
    default_type = "invalid_request_error"
    default_code = "invalid_request"


class Unauthorized(ServiceError):
    """The service has API keys, and the request carries none of them."""

    default_status = 401
    default_type = "authentication_error"
    default_code = "invalid_api_key"


class NotFound(ServiceError):
    """There is no such thing here, or it belongs to another key."""

    default_status = 404
    default_type = "invalid_request_error"
    default_code = "not_found"


class Conflict(ServiceError):
    """The request does not fit what there is already."""

    default_status = 409
    default_type = "invalid_request_error"
    default_code = "conflict"


class RateLimited(ServiceError):
    """This caller asks for more than its share."""

    default_status = 429
    default_type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class Overloaded(ServiceError):
    """The queue is full. `retry_after_s` is always set, so clients read Retry-After."""

    default_status = 429
    default_type = "rate_limit_error"
    default_code = "queue_full"


class NoWorker(ServiceError):
    """No live worker serves this model."""

    default_status = 503
    default_code = "no_worker"


class QueueUnavailable(ServiceError):
    """Redis did not answer, retries included. A worker tries again, a gateway answers 503."""

    default_status = 503
    default_code = "queue_unavailable"


class JobFailed(ServiceError):
    """A job ended without a result.

    Args:
        job_id: named in the message.
        error: what the worker or the queue stored as the reason.
    """

    default_code = "job_failed"

    def __init__(self, job_id: str, error: ErrorBody) -> None:
        super().__init__(
            f"job {job_id} failed: {error.message}", code=error.code, param=error.param
        )
        self.type = error.type
        self.job_id = job_id


class JobCancelled(ServiceError):
    """A job was cancelled on purpose; a status that clients do not repeat by themselves."""

    default_status = 499
    default_type = "cancelled_error"
    default_code = "job_cancelled"


class DeadlineExceeded(ServiceError):
    """The time that the request had is over."""

    default_status = 504
    default_code = "deadline_exceeded"


class BackendError(Exception):
    """A model call failed; only the jobs it served are affected."""


class OutOfMemory(BackendError):
    """The device's memory did not suffice for this batch."""
