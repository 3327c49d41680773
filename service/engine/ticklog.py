"""What happens in a tick, and calls that find their own guilty item."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from service.engine.isolation import isolate
from service.engine.work import EngineCall, EngineEvent, Tick


class _OfJob(Protocol):
    @property
    def job_id(self) -> str: ...


T = TypeVar("T", bound=_OfJob)
R = TypeVar("R")


class TickLog:
    """Collects until the tick is over.

    Args:
        on_fault: hears of each batch of two or more that failed and is tried again in halves.
        clock: seconds of any origin.
        with_calls: note for each call which jobs it was for.
    """

    def __init__(
        self,
        on_fault: Callable[[Sequence[object], Exception], None],
        clock: Callable[[], float] = time.perf_counter,
        *,
        with_calls: bool = False,
    ) -> None:
        self._on_fault = on_fault
        self._clock = clock
        self._with_calls = with_calls
        self.tick = Tick()

    @property
    def is_empty(self) -> bool:
        """True when there is no event that nobody has read."""
        return not self.tick.events

    def emit(self, event: EngineEvent) -> None:
        """Tell something to who reads the tick."""
        self.tick.events.append(event)

    def end(self) -> Tick:
        """The tick that is over; a new one begins."""
        ended, self.tick = self.tick, Tick()
        return ended

    def isolate(
        self, stage: str, items: Sequence[T], call: Callable[[Sequence[T]], Sequence[R]]
    ) -> tuple[list[R | Exception], float]:
        """`isolate`, timed, with its faults noted; the seconds include repeated calls."""
        started = self._clock()
        outcomes = isolate(items, call, self._note_fault)
        seconds = self._clock() - started
        self.tick.stage_seconds.append((stage, seconds))
        if self._with_calls:
            job_ids = tuple(item.job_id for item in items)
            self.tick.calls += (EngineCall(stage, job_ids, started, seconds),)
        return outcomes, seconds

    def _note_fault(self, items: Sequence[object], error: Exception) -> None:
        self.tick.faults.append(error)
        self._on_fault(items, error)
