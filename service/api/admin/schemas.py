"""Bodies of the admin endpoints."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

State = Literal["loading", "done", "refused"]


class ReloadFields(BaseModel):
    """What to load; without a body every worker reads its own bundle again."""

    model_config = ConfigDict(extra="forbid")

    bundle: str | None = Field(
        default=None,
        pattern="^/",
        max_length=4096,
        description="Directory of another bundle, absolute, on the workers' machines.",
    )


class WorkerReload(BaseModel):
    """One worker, and how far it is with the latest request."""

    worker: str
    host: str
    model: str
    backend: str
    bundle: str = Field(description="Directory that it serves.")
    number: int = Field(description="Of the latest request that it has seen.")
    state: State
    reason: str | None = Field(description="Why it refused; the model before it is served on.")


class ReloadStatus(BaseModel):
    """The latest request to load a bundle; `number` is 0 before the first."""

    number: int
    bundle: str | None = Field(description="null: each worker's own.")
    requested_at: float | None = Field(description="Unix time in seconds.")
    state: State = Field(
        description="done: every worker serves what was asked for; refused: all have acted, and "
        "some could not load it; loading: some have not acted yet."
    )
    workers: list[WorkerReload]
