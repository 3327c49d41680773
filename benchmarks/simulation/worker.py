"""A simulated worker: pictures that step together on one device, as `service.engine` has them.

A picture joins between two steps if its rows fit and leaves after its last one; all pay for the
step of the whole batch. Nothing changes between two such moments, so the steps between them are one
event, which is cut short when a picture comes.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from benchmarks.simulation.costs import Device
from benchmarks.simulation.events import EventLoop

LAST_STEPS = 2  # as in service.running: who has no more left makes room for the next one
SHARE_AT_ONCE = 8  # as there: of a device's rows, asked for at once
USUAL_ROWS = 2


@dataclass(eq=False, slots=True)
class Job:
    """One picture; times in seconds of the simulation, -1 before they are known.

    steps: velocity calls; rows: of each, 1 to 3; gateway: who waits for it; taken_at: the latest
    delivery; num_deliveries: so far.
    """

    arrived_at: float
    steps: int
    rows: int = 2
    gateway: int = 0
    queued_at: float = -1.0
    taken_at: float = -1.0
    ended_at: float = -1.0
    num_deliveries: int = 0


class DeviceWorker:
    """One device.

    Args:
        loop: the clock.
        device: what steps cost.
        on_done: called with each picture after its last step and its decoding.
        on_room: called after each change; the worker may take jobs now.

    Attributes:
        index: set by the owner.
        alive, draining: it computes; it takes no more.
        reading: it has asked for jobs and waits; listens_at: the reply to its latest take is there.
        held: jobs that it has and whose outcome is not sent.
        busy_s: seconds of its steps and what goes with them.
        row_steps: model rows times steps so far.
    """

    def __init__(
        self,
        loop: EventLoop,
        device: Device,
        on_done: Callable[["DeviceWorker", Job, float], None],
        on_room: Callable[["DeviceWorker", float], None],
    ) -> None:
        self.index = -1
        self.alive, self.draining, self.reading = True, False, False
        self.listens_at = 0.0
        self.held: set[Job] = set()
        self.busy_s, self.row_steps = 0.0, 0
        self._loop = loop
        self._device = device
        self._on_done, self._on_room = on_done, on_room
        self._inbox: deque[Job] = deque()
        self._active: list[tuple[int, Job]] = []  # and the count of steps with which it is done
        self._rows = 0
        self._count = 0  # steps so far
        self._planned = 0  # steps of the event under way; 0: the device rests
        self._began = self._first_end = self._step_s = 0.0
        self._version = 0  # of the event under way; older ones are void

    @property
    def is_stepping(self) -> bool:
        """Whether pictures are on their way."""
        return self._planned > 0

    @property
    def num_stepping(self) -> int:
        """Pictures in the batch."""
        return len(self._active)

    def free_rows(self) -> int:
        """Rows that nobody needs after the last two steps of those who have them."""
        room = self._device.max_rows
        for job in self._inbox:
            room -= job.rows
        soon = self._count + LAST_STEPS
        for done_with, job in self._active:
            if done_with > soon:
                room -= job.rows
        return max(0, room)

    def credit(self) -> int:
        """Jobs to ask for, a part of those that have room."""
        if not self.alive or self.draining:
            return 0
        at_once = max(1, self._device.max_rows // SHARE_AT_ONCE)
        return min(at_once, self.free_rows() // USUAL_ROWS)

    def give(self, job: Job, now: float) -> None:
        """A job has arrived."""
        self._inbox.append(job)
        if not self._planned:
            self._begin(now)
        elif self._planned > 1 and self._rows + job.rows <= self._device.max_rows:
            self._cut(now)

    def kill(self, now: float) -> list[Job]:
        """Stop at once. Returns what it held, which its leases keep from others for a while."""
        self.alive = self.reading = False
        self._version += 1
        if self._planned:
            self.busy_s -= max(0.0, self._ends_at - now)
        lost = list(self.held)
        self.held.clear()
        self._inbox.clear()
        self._active.clear()
        self._planned = self._rows = 0
        return lost

    def _begin(self, now: float) -> None:
        """Let in who fits, and plan the steps until something changes."""
        device, inbox, active = self._device, self._inbox, self._active
        stepping = bool(active)
        new_rows = 0
        if inbox:
            # Beside running pictures, prefill gets the time of one step, but one piece at least.
            step_s = device.table[self._rows]
            most = int(step_s / device.prefill_s) if stepping and device.prefill_s else 10**9
            for _ in range(len(inbox)):
                job = inbox.popleft()
                late = new_rows and new_rows + job.rows > most
                if late or self._rows + job.rows > device.max_rows:
                    inbox.append(job)
                    continue
                self._rows += job.rows
                new_rows += job.rows
                active.append((self._count + job.steps, job))
        if not active:
            self._planned = 0
            return
        planned = 1 << 30
        count = self._count
        for done_with, _ in active:
            left = done_with - count
            change = left - LAST_STEPS if left > LAST_STEPS else left
            planned = min(planned, change)
        if inbox and planned > 1 and any(self._rows + job.rows <= device.max_rows for job in inbox):
            planned = 1  # who was late comes next
        done_with = count + planned
        num_done = sum(end == done_with for end, _ in active)
        self._planned = planned
        self._began = now
        self._step_s = device.table[self._rows]
        self._first_end = now + new_rows * device.prefill_s + self._step_s
        self._schedule(num_done)

    def _schedule(self, num_done: int) -> None:
        self._version += 1
        end = self._first_end + (self._planned - 1) * self._step_s
        self._ends_at = end + num_done * self._device.decode_s
        self.busy_s += self._ends_at - self._began
        self._loop.at(self._ends_at, self._end, self._version)

    def _cut(self, now: float) -> None:
        """End after the step that is under way, to let somebody in."""
        under_way = max(1, 1 + ceil((now - self._first_end) / self._step_s))
        if under_way < self._planned:
            self.busy_s -= self._ends_at - self._began
            self._planned = under_way
            self._schedule(0)

    def _end(self, now: float, version: int) -> None:
        if version != self._version:
            return
        self._count += self._planned
        self.row_steps += self._planned * self._rows
        count = self._count
        done = [job for done_with, job in self._active if done_with == count]
        if done:
            self._active = [one for one in self._active if one[0] != count]
            for job in done:
                self._rows -= job.rows
        self._begin(now)
        for job in done:
            self._on_done(self, job, now)
        self._on_room(self, now)
