"""The simulated queue: jobs that wait in one Redis, and workers that take them.

All processes are equally far from Redis, so its clock runs one hop behind everyone else's: a
command is served when it is sent, and its reply arrives two hops after that was done.

An idle worker waits in a blocking read of the streams. Every job that is put wakes all of them
(`wake="all"`, as the service does it); the first `take` gets the job, and the others find nothing,
at a cost. With `wake="one"` only one of them wakes, to show what that would change.
"""

import random
from collections import deque
from collections.abc import Callable
from typing import Literal, TypeAlias

from benchmarks.simulation.costs import Costs, Device
from benchmarks.simulation.events import EventLoop, Server
from benchmarks.simulation.worker import DeviceWorker, Job

Wake: TypeAlias = Literal["all", "one"]

PATIENCE_S = 0.5  # as in service.taking: an idle worker asks again without being woken


class Broker:
    """Jobs between gateways and workers.

    Args:
        on_end: called with each job when Redis has its outcome.

    Attributes:
        redis: the server; waiting: jobs that nobody has; num_in_hand: jobs that somebody has.
        num_empty_takes: those that found nothing.
        most_waiting: at any moment.
    """

    def __init__(
        self,
        loop: EventLoop,
        costs: Costs,
        device: Device,
        source: random.Random,
        on_end: Callable[[Job, float], None],
        wake: Wake = "all",
    ) -> None:
        self.redis = Server()
        self.waiting: deque[Job] = deque()
        self.num_in_hand = self.num_empty_takes = self.most_waiting = 0
        self._loop = loop
        self._costs = costs
        self._react_s = device.react_s
        self._compress_s = device.compress_s
        self._source = source
        self._on_end = on_end
        self._wake_all = wake == "all"
        self._blocked: list[DeviceWorker] = []
        self._woken: list[DeviceWorker] = []  # for nothing; their takes are under way

    def put(self, job: Job, now: float) -> None:
        """A gateway sends a job."""
        self._loop.at(self.redis.serve(now, self._costs.redis.put), self._enqueue, job)

    def put_back(self, jobs: list[Job], now: float) -> None:
        """The leases of jobs have ended: they come before those that nobody had yet."""
        self.num_in_hand -= len(jobs)
        self.waiting.extendleft(reversed(jobs))
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        # Nobody is told of it: an idle worker finds them when its reading ends.
        self._loop.at(now + self._source.uniform(0, PATIENCE_S), self._look_around)

    def read(self, worker: DeviceWorker, now: float) -> None:
        """A worker asks for jobs, unless it does so already or has no room."""
        if worker.reading or not worker.credit():
            return
        worker.reading = True
        if self.waiting:
            self._loop.at(now + self._react_s, self._send_take, worker)
        else:
            self._blocked.append(worker)

    def finish(self, worker: DeviceWorker, job: Job, now: float) -> None:
        """A worker has computed a job: its file is written and its outcome sent."""
        send_at = now + self._react_s + self._compress_s
        self._loop.at(send_at, self._send_outcome, (worker, job))

    def _enqueue(self, now: float, job: Job) -> None:
        job.queued_at = now
        self.waiting.append(job)
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        self._wake(now)

    def _look_around(self, now: float, _: None = None) -> None:
        if self.waiting:
            self._wake(now)

    def _wake(self, now: float) -> None:
        blocked = self._blocked
        if not blocked:
            if self._woken:  # the next of their takes finds it, wherever it is in the line
                self._take(now, self._pick(self._woken))
            return
        first = self._pick(blocked)
        reply_at = now + 2 * self._costs.hop_s + self._react_s
        self._loop.at(reply_at, self._send_take, first)
        if self._wake_all and blocked:
            self._woken += blocked
            num_woken = len(blocked)
            blocked.clear()
            self._loop.at(reply_at, self._send_empty_takes, num_woken)

    def _pick(self, workers: list[DeviceWorker]) -> DeviceWorker:
        """Any one of them: which is quickest is chance."""
        place = self._source.randrange(len(workers))
        workers[place], workers[-1] = workers[-1], workers[place]
        return workers.pop()

    def _send_empty_takes(self, now: float, num_woken: int) -> None:
        self.num_empty_takes += num_woken
        done_at = self.redis.serve(now, num_woken * self._costs.redis.take_empty)
        self._loop.at(done_at + 2 * self._costs.hop_s, self._block_again, num_woken)

    def _block_again(self, now: float, num_woken: int) -> None:
        count = min(num_woken, len(self._woken))
        self._blocked += self._woken[:count]
        del self._woken[:count]
        self._look_around(now)

    def _send_take(self, now: float, worker: DeviceWorker) -> None:
        if worker.alive:
            self._loop.at(self.redis.serve(now, self._costs.redis.take_empty), self._take, worker)

    def _take(self, now: float, worker: DeviceWorker) -> None:
        jobs: list[Job] = []
        credit = worker.credit()
        if self.waiting and not credit:  # it left meanwhile; the service gives the jobs back
            self._wake(now)
        while self.waiting and len(jobs) < credit:
            jobs.append(self.waiting.popleft())
        per_job_s = self._costs.redis.take - self._costs.redis.take_empty
        done_at = self.redis.serve(now, len(jobs) * per_job_s) if jobs else now
        for job in jobs:
            job.taken_at = done_at
            job.num_deliveries += 1
            worker.held.add(job)
        self.num_in_hand += len(jobs)
        arrives_at = done_at + 2 * self._costs.hop_s + self._react_s
        self._loop.at(arrives_at, self._deliver, (worker, jobs))

    def _deliver(self, now: float, delivery: tuple[DeviceWorker, list[Job]]) -> None:
        worker, jobs = delivery
        if not worker.alive:
            return
        worker.reading = False
        for job in jobs:
            worker.give(job, now)
        self.read(worker, now)

    def _send_outcome(self, now: float, ended: tuple[DeviceWorker, Job]) -> None:
        worker, job = ended
        if worker.alive and job in worker.held:  # else its lease will end
            self._loop.at(self.redis.serve(now, self._costs.redis.finish), self._settle, ended)

    def _settle(self, now: float, ended: tuple[DeviceWorker, Job]) -> None:
        """Redis has the outcome, unless its sender died on the way: then others repeat the job."""
        worker, job = ended
        if job not in worker.held:
            return
        worker.held.discard(job)
        self.num_in_hand -= 1
        self._on_end(job, now)

    def forget(self, worker: DeviceWorker) -> None:
        """A worker is gone: it waits for nothing."""
        for waiting in (self._blocked, self._woken):
            if worker in waiting:
                waiting.remove(worker)
