"""A job and what becomes of it: parameters, delivery to a worker, events, outcome."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.manifest import Sampler, Task
from service.boxes import Box
from service.errors import ErrorBody

Priority: TypeAlias = Literal["interactive", "batch"]
PRIORITIES: tuple[Priority, ...] = ("interactive", "batch")

ImageFormat: TypeAlias = Literal["png", "jpeg", "webp"]
EventKind: TypeAlias = Literal[
    "queued", "started", "progress", "preview", "succeeded", "failed", "cancelled"
]

MAX_SEED = 2**63 - 1

LATE = ErrorBody(
    "the job's deadline passed while it waited: allow more time, or send it when less is waiting",
    code="deadline_exceeded",
)


class Status(StrEnum):
    """Where a job stands; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in FINAL_STATUSES


FINAL_STATUSES = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})


class _Params(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GenerateParams(_Params):
    """One picture from a prompt. The served model's own limits are checked before a job is made."""

    prompt: str
    negative_prompt: str = ""
    seed: int = Field(ge=0, le=MAX_SEED)
    steps: int = Field(ge=1)
    guidance_scale: float = Field(ge=0)
    guidance_min_t: float = Field(default=0.0, ge=0, le=1)
    guidance_max_t: float = Field(default=1.0, ge=0, le=1)
    sampler: Sampler = "euler"
    output_format: ImageFormat = "png"
    output_compression: int = Field(default=100, ge=0, le=100)
    partial_images: int = Field(
        default=0, ge=0, le=3, description="previews to publish while it runs"
    )


class EditParams(GenerateParams):
    """One picture from a picture and an instruction; also used by the task `variation`."""

    image_guidance_scale: float = Field(ge=0)
    strength: float = Field(default=1.0, gt=0, le=1)
    box: Box | None = Field(default=None, description="of the picture that is kept; None: all")


class EncodeParams(_Params):
    """Latents of a batch of pictures: the posterior's mean, or a draw from it."""

    sample: bool = False
    seed: int = Field(default=0, ge=0, le=MAX_SEED)


class DecodeParams(_Params):
    """Pictures of a batch of latents; `tensor` gives uint8 safetensors instead of files."""

    output_format: Literal["png", "jpeg", "webp", "tensor"]
    output_compression: int = Field(default=100, ge=0, le=100)
    boxes: tuple[Box, ...] = Field(default=(), description="kept of each picture; none: all")


Params: TypeAlias = GenerateParams | EditParams | EncodeParams | DecodeParams

PARAMS_OF_TASK: dict[Task, type[_Params]] = {
    "generate": GenerateParams,
    "edit": EditParams,
    "variation": EditParams,
    "encode": EncodeParams,
    "decode": DecodeParams,
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture, or one batch to encode or decode.

    `created_at`, `deadline_at`: Unix times in seconds. `owner`: the hash of the caller's key.
    `row_steps`: model rows times velocity evaluations, by which owners share the workers.
    `traceparent`: the request's span, by W3C Trace Context, or empty.
    """

    id: str
    task: Task
    model: str
    params: Params
    priority: Priority = "interactive"
    created_at: float
    deadline_at: float | None = None
    owner: str = ""
    row_steps: int = 1
    request_id: str = ""
    traceparent: str = ""

    def __post_init__(self) -> None:
        expected = PARAMS_OF_TASK.get(self.task)
        if expected is None:
            raise ValueError(f"unknown task {self.task!r}, expected one of {list(PARAMS_OF_TASK)}")
        if type(self.params) is not expected:
            raise ValueError(
                f"task {self.task!r} takes {expected.__name__}, got {type(self.params).__name__}"
            )
        if self.priority not in PRIORITIES:
            raise ValueError(f"unknown priority {self.priority!r}, expected one of {PRIORITIES}")
        if not self.id or any(letter in self.id for letter in "{}: "):
            raise ValueError(f"a job id holds no braces, colons or spaces, got {self.id!r}")
        if self.row_steps < 1:
            raise ValueError(f"a job has at least one row_step, got {self.row_steps}")

    def to_fields(self) -> dict[str, str]:
        """Fields of the job's Redis hash, all text; empty ones are left out."""
        fields = {
            "id": self.id,
            "task": self.task,
            "model": self.model,
            "params": self.params.model_dump_json(),
            "priority": self.priority,
            "created_at": repr(self.created_at),
            "deadline_at": "" if self.deadline_at is None else repr(self.deadline_at),
            "owner": self.owner,
            "row_steps": str(self.row_steps),
            "request_id": self.request_id,
            "traceparent": self.traceparent,
        }
        return {name: value for name, value in fields.items() if value}

    @property
    def trace_id(self) -> str:
        """Of the request's trace, empty where it has none; 32 hex digits."""
        return self.traceparent[3:35]

    @property
    def ids(self) -> dict[str, str]:
        """What a log line names the job by; the trace where it has one."""
        ids = {"job_id": self.id, "request_id": self.request_id, "task": self.task}
        return {**ids, "trace_id": self.trace_id} if self.trace_id else ids

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> "Job":
        """The inverse of `to_fields`; fields of other names are ignored.

        Raises:
            ValueError: names the field that is missing or does not parse.
        """
        try:
            task: Any = fields["task"]
            params_type = PARAMS_OF_TASK.get(task)
            if params_type is None:
                raise ValueError(f"unknown task {task!r}")
            deadline_at = fields.get("deadline_at")
            params: Any = params_type.model_validate_json(fields["params"])
            priority: Any = fields.get("priority", "interactive")
            return cls(
                id=fields["id"],
                task=task,
                model=fields["model"],
                params=params,
                priority=priority,
                created_at=float(fields["created_at"]),
                deadline_at=float(deadline_at) if deadline_at else None,
                owner=fields.get("owner", ""),
                row_steps=int(fields.get("row_steps", 1)),
                request_id=fields.get("request_id", ""),
                traceparent=fields.get("traceparent", ""),
            )
        except KeyError as error:
            raise ValueError(f"stored job lacks the field {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(("params", *(str(part) for part in first["loc"])))
            raise ValueError(f"stored job: {where}: {first['msg']}") from None


@dataclass(frozen=True)
class Delivery:
    """A job in the hands of a worker until its lease ends.

    A worker that is handed a job it already holds (its own lease had ended) keeps the newer
    delivery. `num_deliveries` counts this one; `waited_s` is the time since the job was put, by
    Redis' clock.
    """

    job: Job
    entry_id: str
    payload: bytes | None
    num_deliveries: int
    waited_s: float = 0.0


@dataclass(frozen=True)
class Event:
    """Something that happened to a job. `id` orders events and is what `after` takes."""

    id: str
    kind: EventKind
    data: dict[str, Any]
    blob: bytes | None = None

    @property
    def final(self) -> bool:
        return self.kind in FINAL_STATUSES


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    `info` of a succeeded job: timings_s (queue, prefill, denoise, encode, decode, compress), seed,
    steps, sampler, worker, num_deliveries. `error` is set exactly when the status is failed.
    """

    status: Status
    outputs: list[bytes]
    info: dict[str, Any]
    error: ErrorBody | None = None


@dataclass(frozen=True)
class QueueDepth:
    """Jobs of one priority that no worker holds, for how long the oldest has waited, their cost."""

    waiting: int
    oldest_s: float
    row_steps: int = 0


@dataclass(frozen=True)
class RedisMemory:
    """Memory of the queue's server, used and allowed; `limit_bytes` 0: no limit is set."""

    used_bytes: int
    limit_bytes: int


def to_json(value: Any) -> str:
    """Compact JSON; refuses NaN and infinities, which are no JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
