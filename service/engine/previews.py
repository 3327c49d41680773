"""Previews that wait to be decoded; what comes later is worth more than what came before."""

from dataclasses import dataclass

from service.engine.slices import Piece


@dataclass(frozen=True, eq=False, kw_only=True)
class Preview(Piece):
    """Predicted clean latents (C, h, w) after `step` of `num_steps` evaluations; index counts the
    job's previews.
    """

    step: int
    num_steps: int


class PreviewQueue:
    """At most one preview of each job, in the order in which the jobs asked."""

    def __init__(self) -> None:
        self._waiting: dict[str, Preview] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, preview: Preview) -> None:
        """Let a preview wait, in the place of an older one of its job."""
        self._waiting[preview.job_id] = preview

    def take(self, count: int) -> list[Preview]:
        """At most `count` previews."""
        return [self._waiting.pop(job_id) for job_id in list(self._waiting)[:count]]

    def drop(self, job_id: str) -> None:
        """The job is done or gone: nobody wants its preview any more."""
        self._waiting.pop(job_id, None)
