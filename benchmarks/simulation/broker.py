"""The simulated queue: jobs that wait in one Redis, and workers that take them.

All processes are equally far from Redis, so its clock runs one hop behind everyone else's: a
command is served when it is sent, and its reply arrives two hops after that was done.

A take that gets less than it asked for makes its worker one of those that wait: every job that
comes calls one of them, which then takes. Who got all that it asked for takes again when it has
room. With `wake="all"` every job wakes all who wait, as it once was: the first `take` gets the job,
and the others find nothing, at a cost.
"""

import random
from collections import deque
from collections.abc import Callable
from typing import Literal, TypeAlias

from benchmarks.simulation.costs import Costs, Device
from benchmarks.simulation.events import EventLoop, Server
from benchmarks.simulation.readers import PATIENCE_S, Readers
from benchmarks.simulation.worker import DeviceWorker, Job

Wake: TypeAlias = Literal["all", "one"]


class Broker:
    """Jobs between gateways and workers.

    Args:
        on_end: called with each job when Redis has its outcome.

    Attributes:
        redis: the server; waiting: jobs that nobody has; num_in_hand: jobs that somebody has.
        num_calls: of workers that waited; num_empty_takes: those that found nothing.
        most_waiting: at any moment.
    """

    def __init__(
        self,
        loop: EventLoop,
        costs: Costs,
        device: Device,
        source: random.Random,
        on_end: Callable[[Job, float], None],
        wake: Wake = "one",
    ) -> None:
        self.redis = Server()
        self.waiting: deque[Job] = deque()
        self.num_in_hand = self.num_calls = self.num_empty_takes = self.most_waiting = 0
        self._loop = loop
        self._costs = costs
        self._react_s = device.react_s
        self._compress_s = device.compress_s
        self._source = source
        self._on_end = on_end
        self._wake_all = wake == "all"
        self._ready = Readers()
        self._is_looking = False
        self._woken: list[DeviceWorker] = []  # for nothing; their takes are under way

    def put(self, job: Job, now: float) -> None:
        """A gateway sends a job."""
        self._loop.at(self.redis.serve(now, self._costs.redis.put), self._enqueue, job)

    def put_back(self, jobs: list[Job], now: float) -> None:
        """The leases of jobs have ended: they come before those that nobody had yet."""
        self.num_in_hand -= len(jobs)
        self.waiting.extendleft(reversed(jobs))
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        self._look_soon(now)  # nobody is called

    def read(self, worker: DeviceWorker, now: float) -> None:
        """A worker asks for jobs, unless it does so already or has no room."""
        if not worker.reading and worker.credit():
            worker.reading = True
            self._loop.at(now + self._react_s, self._send_take, worker)

    def finish(self, worker: DeviceWorker, job: Job, now: float) -> None:
        """A worker has computed a job: its file is written and its outcome sent."""
        send_at = now + self._react_s + self._compress_s
        self._loop.at(send_at, self._send_outcome, (worker, job))

    def _enqueue(self, now: float, job: Job) -> None:
        job.queued_at = now
        self.waiting.append(job)
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        self._call(now)

    def _call(self, now: float) -> None:
        """Redis has a job for one of those who wait."""
        if self._wake_all:
            self._call_all(now)
        elif worker := self._ready.pop(now):
            self._tell(worker, now)

    def _tell(self, worker: DeviceWorker, now: float) -> None:
        self.num_calls += 1
        told_at = max(self.redis.serve(now, self._costs.redis.call), worker.listens_at)
        self._loop.at(told_at + 2 * self._costs.hop_s + self._react_s, self._send_take, worker)

    def _call_all(self, now: float) -> None:
        ready = self._ready.pop_all()
        if ready:
            self._tell(self._pick(ready), now)
        elif self._woken:  # the next of their takes finds it, wherever it is in the line
            self._take(now, self._pick(self._woken))
        if ready:
            self._woken += ready
            reply_at = now + 2 * self._costs.hop_s + self._react_s
            self._loop.at(reply_at, self._send_empty_takes, len(ready))

    def _pick(self, workers: list[DeviceWorker]) -> DeviceWorker:
        """Any one of them: which is quickest is chance."""
        place = self._source.randrange(len(workers))
        workers[place], workers[-1] = workers[-1], workers[place]
        return workers.pop()

    def _send_empty_takes(self, now: float, num_woken: int) -> None:
        self.num_calls += num_woken
        self.num_empty_takes += num_woken
        each_s = self._costs.redis.call + self._costs.redis.take_empty
        done_at = self.redis.serve(now, num_woken * each_s)
        self._loop.at(done_at + 2 * self._costs.hop_s, self._wait_again, num_woken)

    def _wait_again(self, now: float, num_woken: int) -> None:
        count = min(num_woken, len(self._woken))
        for worker in self._woken[:count]:
            self._ready.add(worker, worker.free_rows(), now)
        del self._woken[:count]
        if self.waiting:
            self._call(now)

    def _look_soon(self, now: float) -> None:
        """Who waits also looks twice a second; one of them finds what nobody was called for."""
        if self.waiting and self._ready and not self._is_looking:
            self._is_looking = True
            longest_s = 2 * PATIENCE_S / (1 + len(self._ready))
            self._loop.at(now + self._source.uniform(0, longest_s), self._look)

    def _look(self, now: float, _: None) -> None:
        self._is_looking = False
        if self.waiting and (worker := self._ready.pop(now)):
            self._send_take(now, worker)
        self._look_soon(now)

    def _send_take(self, now: float, worker: DeviceWorker) -> None:
        if worker.alive:
            self._loop.at(self.redis.serve(now, self._costs.redis.take_empty), self._take, worker)
        else:
            self._look_soon(now)

    def _take(self, now: float, worker: DeviceWorker) -> None:
        credit = worker.credit()
        jobs = [self.waiting.popleft() for _ in range(min(credit, len(self.waiting)))]
        self.num_empty_takes += not jobs
        per_job_s = self._costs.redis.take - self._costs.redis.take_empty
        done_at = self.redis.serve(now, len(jobs) * per_job_s) if jobs else now
        for job in jobs:
            job.taken_at = done_at
            job.num_deliveries += 1
            worker.held.add(job)
        self.num_in_hand += len(jobs)
        worker.listens_at = done_at + 2 * self._costs.hop_s + self._react_s
        is_ready = len(jobs) < credit
        if is_ready:
            self._ready.add(worker, worker.free_rows() - len(jobs), now)
        elif not credit and self.waiting:  # it left meanwhile, and says so
            self._call(now)
        self._loop.at(worker.listens_at, self._deliver, (worker, jobs, is_ready))

    def _deliver(self, now: float, delivery: tuple[DeviceWorker, list[Job], bool]) -> None:
        worker, jobs, is_ready = delivery
        if not worker.alive:
            return
        for job in jobs:
            worker.give(job, now)
        if not is_ready:
            worker.reading = False
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
        self._ready.discard(worker)
        if worker in self._woken:
            self._woken.remove(worker)
