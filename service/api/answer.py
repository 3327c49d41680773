"""How a request is answered once its jobs have ended.

The plan travels with the jobs in the queue, so that any gateway gives the same answer at any time:
to the client that waits, to one that asks later by the job's id, to one that repeats its request.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from service.jobs.job import Job, Outcome


@dataclass(frozen=True)
class Answer:
    """Body, media type and further headers of the answer to a finished request."""

    content: bytes
    media_type: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """What the jobs of one request made, in their order.

    urls: addresses of the results, where the plan asks for links; `expires_at`: Unix time in
    seconds at which those end; `created_at`: when the request arrived.
    """

    jobs: Sequence[Job]
    outcomes: Sequence[Outcome]
    created_at: float
    urls: Sequence[str] = ()
    expires_at: int | None = None

    @property
    def outputs(self) -> list[bytes]:
        """All files of all jobs."""
        return [output for outcome in self.outcomes for output in outcome.outputs]


class AnswerPlan(BaseModel, ABC):
    """What the request asked for. Subclasses add `kind`, by which they are told apart as JSON."""

    model_config = ConfigDict(frozen=True)

    headers: dict[str, str] = Field(default_factory=dict)
    """Of the answer, beside those that every answer has."""

    @property
    def links(self) -> bool:
        """Whether the answer names the results' addresses instead of carrying them."""
        return False

    @property
    @abstractmethod
    def media_type(self) -> str:
        """Of the answer."""

    @abstractmethod
    def build(self, made: Made) -> Answer:
        """The answer; takes time with large results, so not for the event loop."""
