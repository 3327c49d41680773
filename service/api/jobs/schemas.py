"""What the job endpoints answer with."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from models.manifest import Task
from service.jobs.job import Status


class ErrorObject(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class PictureProgress(BaseModel):
    """One picture of a request, or its one batch to encode or decode."""

    status: Status
    step: int = Field(description="Denoising steps done; 0 or 1 for encode and decode.")
    num_steps: int


class JobState(BaseModel):
    """A request and where it stands: `failed` as soon as one of its pictures failed."""

    id: str
    object: Literal["job"] = "job"
    task: Task
    status: Status
    created_at: int = Field(description="Unix time in seconds.")
    expires_at: int | None = Field(
        None, description="Unix time in seconds after which an ended job is forgotten."
    )
    progress: list[PictureProgress]
    error: ErrorObject | None = Field(
        None, description="What a client that waits would have got; set when the status is failed."
    )
    result: dict[str, Any] | None = Field(
        None,
        description="Set when the status is succeeded: what a client that waits would have got, "
        "if that is JSON.",
    )
    result_url: str | None = Field(
        None, description="Set when the status is succeeded: address of that answer, JSON or bytes."
    )
