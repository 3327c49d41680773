"""The clock of a simulation: callbacks in the order of their times."""

import heapq
from collections.abc import Callable
from typing import Any, TypeAlias

Callback: TypeAlias = Callable[[float, Any], None]


class EventLoop:
    """Simulated time. What is due at one moment runs in the order in which it was asked for.

    Attributes:
        now: seconds since the start.
        num_events: callbacks that have run.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.num_events = 0
        self._due: list[tuple[float, int, Callback, Any]] = []
        self._number = 0

    def at(self, time: float, callback: Callback, argument: Any = None) -> None:
        """Call `callback(time, argument)` then; a time that has passed means now."""
        self._number += 1
        heapq.heappush(self._due, (max(time, self.now), self._number, callback, argument))

    def run(self, until: float | None = None) -> None:
        """Go on until nothing is due any more, or to that time."""
        due, pop = self._due, heapq.heappop
        while due and (until is None or due[0][0] <= until):
            time, _, callback, argument = pop(due)
            self.now = time
            self.num_events += 1
            callback(time, argument)
        if until is not None:
            self.now = max(self.now, until)


class Server:
    """One server that works off what it is given in order of arrival: a process on a core.

    Its queue needs no events: what comes is done after what is there already. Callers come in the
    order of time.

    Attributes:
        busy_s: seconds of work that it was given.
    """

    def __init__(self) -> None:
        self.busy_s = 0.0
        self._free_at = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """Take work of that length; returns when it is done."""
        self.busy_s += seconds
        self._free_at = max(now, self._free_at) + seconds
        return self._free_at

    def backlog_s(self, now: float) -> float:
        """Work that waits or is under way."""
        return max(0.0, self._free_at - now)
