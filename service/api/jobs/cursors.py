"""Where the reader of a request's events stands: one place for each of its jobs.

Written as the id of a server-sent event, `1764122551123-0.s.0`: the id of the job's last event, `0`
before the first, or a letter once the job has ended, after which it has no more events.
"""

import re
from collections.abc import Sequence

from service.errors import InvalidRequest
from service.jobs.job import Event, Status

_START = "0"
_LETTERS = {Status.SUCCEEDED: "s", Status.FAILED: "f", Status.CANCELLED: "c"}
_STATUSES = {letter: status for status, letter in _LETTERS.items()}
_PLACE = "(0|[1-9][0-9]{0,14}-[0-9]{1,15}|[sfc])"
CURSORS_PATTERN = rf"{_PLACE}(\.{_PLACE}){{0,9}}"
_SHOWN_CHARS = 60


class Cursors:
    """A place for each job of a request, in their order."""

    def __init__(self, places: Sequence[str]) -> None:
        self._places = list(places)

    @classmethod
    def parse(cls, text: str, num_jobs: int) -> "Cursors":
        """The inverse of `str`; an empty text is the start.

        Raises:
            InvalidRequest: 400, it is no event id of such a request.
        """
        if not text:
            return cls([_START] * num_jobs)
        places = text.split(".")
        if len(places) != num_jobs or not re.fullmatch(CURSORS_PATTERN, text):
            raise InvalidRequest(
                f"{text[:_SHOWN_CHARS]!r} is not the id of an event of this job: send one that its "
                "events carry, or none to begin at the start",
                param="Last-Event-ID",
                code="invalid_value",
            )
        return cls(places)

    def __str__(self) -> str:
        return ".".join(self._places)

    @property
    def open_places(self) -> dict[int, str]:
        """The jobs that may have more events: index in the request, and the last event's id."""
        return {i: place for i, place in enumerate(self._places) if place not in _STATUSES}

    @property
    def at_end(self) -> bool:
        """Whether the request has ended: all its jobs have, or one has failed."""
        return not self.open_places or _LETTERS[Status.FAILED] in self._places

    def advance(self, index: int, event: Event) -> None:
        """Go past an event of a job."""
        self._places[index] = _LETTERS[Status(event.kind)] if event.final else event.id

    def end(self, index: int, status: Status) -> None:
        """Go past all events of a job that ended so."""
        self._places[index] = _LETTERS[status]
