"""The simulated autoscaler: KEDA's trigger and the HPA's behaviour of deploy/k8s."""

import math
from collections import deque
from dataclasses import dataclass

from benchmarks.simulation.cluster import Cluster

_SYNC_S = 15.0  # between two looks of Kubernetes
_TOLERANCE = 0.1  # a ratio that close to 1 changes nothing


@dataclass(frozen=True, kw_only=True)
class Policy:
    """As in scaledobject.yaml: jobs for one worker, limits, and how fast the number may change."""

    jobs_per_worker: int = 8
    min_workers: int = 1
    max_workers: int = 8
    up_workers: int = 2
    up_period_s: float = 30.0
    down_period_s: float = 180.0
    down_stable_s: float = 300.0


class Autoscaler:
    """Starts and drains a cluster's workers.

    Attributes:
        history: (seconds, workers wanted) at each change.
    """

    def __init__(self, cluster: Cluster, policy: Policy) -> None:
        self.num_wanted = cluster.num_alive
        self.history: list[tuple[float, int]] = [(0.0, self.num_wanted)]
        self._cluster = cluster
        self._policy = policy
        self._recommended: deque[tuple[float, int]] = deque()
        self._downs: deque[float] = deque()
        self._changes: deque[tuple[float, int]] = deque()  # workers added
        cluster.loop.at(_SYNC_S, self._sync)

    def _sync(self, now: float, _: None) -> None:
        policy = self._policy
        desired = math.ceil(self._cluster.stream_length / policy.jobs_per_worker)
        ratio = self._cluster.stream_length / policy.jobs_per_worker / self.num_wanted
        if abs(ratio - 1) <= _TOLERANCE:
            desired = self.num_wanted
        desired = min(max(desired, policy.min_workers), policy.max_workers)
        self._recommended.append((now, desired))
        while self._recommended[0][0] < now - policy.down_stable_s:
            self._recommended.popleft()
        if desired > self.num_wanted:
            self._grow(now, desired)
        else:
            # Not below what was recommended at any time in the last minutes.
            stable = max(count for _, count in self._recommended)
            if stable < self.num_wanted:
                self._shrink(now)
        self._cluster.loop.at(now + _SYNC_S, self._sync)

    def _grow(self, now: float, desired: int) -> None:
        policy = self._policy
        while self._changes and self._changes[0][0] <= now - policy.up_period_s:
            self._changes.popleft()
        room = policy.up_workers - sum(count for _, count in self._changes)
        number = min(desired - self.num_wanted, room)
        if number <= 0:
            return
        self._changes.append((now, number))
        self._note(now, self.num_wanted + number)
        for _ in range(number):
            ready_at = now + self._cluster.device.start_s
            self._cluster.loop.at(ready_at, lambda at, _: self._cluster.add_worker(at))

    def _shrink(self, now: float) -> None:
        """One worker goes, unless one has gone lately."""
        if self._downs and now - self._downs[-1] < self._policy.down_period_s:
            return
        staying = [w for w in self._cluster.workers if w.alive and not w.draining]
        if len(staying) <= self._policy.min_workers:
            return
        self._downs.append(now)
        self._note(now, self.num_wanted - 1)
        self._cluster.drain(now, staying[-1])

    def _note(self, now: float, number: int) -> None:
        self.num_wanted = number
        self.history.append((now, number))
