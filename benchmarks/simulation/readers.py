"""The simulated workers that wait for a job, in the order in which the queue calls them.

As in the queue's `ready` set: who has most free rows first, and of those the first name. A worker
says how many it has when it begins to wait, and again whenever it looks by itself.
"""

import heapq
from collections import deque

from benchmarks.simulation.worker import DeviceWorker

PATIENCE_S = 0.5  # as in service.taking: who was not called for so long looks by itself


class Readers:
    """Workers that are called when there is a job; each at most once in it."""

    def __init__(self) -> None:
        self._numbers: dict[DeviceWorker, int] = {}  # of the entry that counts, by worker
        self._count = 0
        self._best: list[tuple[int, int, int, DeviceWorker]] = []
        self._looks: deque[tuple[float, int, DeviceWorker]] = deque()  # when each looks next

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, worker: DeviceWorker, places: int, now: float) -> None:
        """From now on it waits with so many free places: its rows, less the jobs it just got."""
        self._count += 1
        self._numbers[worker] = self._count
        heapq.heappush(self._best, (-places, worker.index, self._count, worker))
        self._looks.append((now + PATIENCE_S, self._count, worker))

    def pop(self, now: float) -> DeviceWorker | None:
        """Who is called next; None when nobody waits."""
        while self._looks and self._looks[0][0] <= now:
            _, number, worker = self._looks.popleft()
            if self._numbers.get(worker) == number:
                self.add(worker, worker.free_rows(), now)
        while self._best:
            _, _, number, worker = heapq.heappop(self._best)
            if self._numbers.get(worker) == number:
                del self._numbers[worker]
                return worker
        return None

    def pop_all(self) -> list[DeviceWorker]:
        """Everybody at once."""
        found = list(self._numbers)
        self._numbers.clear()
        self._best.clear()
        self._looks.clear()
        return found

    def discard(self, worker: DeviceWorker) -> None:
        """It waits no more, if it did."""
        self._numbers.pop(worker, None)
