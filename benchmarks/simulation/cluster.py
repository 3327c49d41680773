"""A simulated service: gateways, one Redis and workers, and requests that pass through them.

Left out, because they change who waits and not what saturates: priorities, deadlines and the turns
of owners. All requests are interactive pictures of one owner, so the queue is first come, first
served.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.simulation.broker import Broker, Wake
from benchmarks.simulation.costs import Costs, Device
from benchmarks.simulation.events import EventLoop, Server
from benchmarks.simulation.housekeeping import Housekeeping
from benchmarks.simulation.worker import DeviceWorker, Job

LEASE_S = 15.0  # RPIAE_LEASE_S; renewed three times in each


class Cluster:
    """One service from its start on.

    Args:
        costs, device: what everything takes.
        num_workers, num_gateways: at the start.
        seed: of all that is random. The same arguments give the same results.
        wake: how many of the workers that wait a new job wakes.
        progress: workers publish how far jobs are.
        lease_s: after so long without a sign of life a job is another's.

    Attributes:
        ended: jobs that were answered, in that order.
        workers: all that ever were.
    """

    def __init__(
        self,
        costs: Costs,
        device: Device,
        *,
        num_workers: int,
        num_gateways: int = 1,
        seed: int = 0,
        wake: Wake = "one",
        progress: bool = True,
        lease_s: float = LEASE_S,
    ) -> None:
        self.loop = EventLoop()
        self.device = device
        self.costs = costs
        self.lease_s = lease_s
        self.source = random.Random(seed)
        self.gateways = [Server() for _ in range(num_gateways)]
        self.broker = Broker(self.loop, costs, device, self.source, self._on_end, wake)
        self.workers: list[DeviceWorker] = []
        self._draining: list[DeviceWorker] = []
        self.ended: list[Job] = []
        self.num_arrived = self.num_redelivered = 0
        self._num_sent = 0  # those that have arrived, and the next one
        # Each gateway hears of the ends of all jobs; per request of its own there are as many as
        # gateways, the first of which is in its measured costs.
        self._after_s = costs.gateway.after + (num_gateways - 1) * costs.gateway.end
        self._worker_s = 0.0  # seconds of workers, up to when their number changed last
        self._counted_at = 0.0
        for _ in range(num_workers):
            self.add_worker(0.0)
        self.housekeeping = Housekeeping(self, progress=progress)

    @property
    def num_alive(self) -> int:
        """Workers that take jobs or finish what they have."""
        return sum(worker.alive for worker in self.workers)

    @property
    def stream_length(self) -> int:
        """Jobs that wait or run, from which the autoscaler reckons."""
        return len(self.broker.waiting) + self.broker.num_in_hand

    def add_worker(self, now: float) -> None:
        """A new worker is ready."""
        self._count_workers(now)
        worker = DeviceWorker(self.loop, self.device, self._on_done, self.broker.read)
        worker.index = len(self.workers)
        self.workers.append(worker)
        self.broker.read(worker, now)

    def kill(self, now: float, worker: DeviceWorker) -> None:
        """A worker dies; its jobs are free when their leases end, and it comes back."""
        self._count_workers(now)
        self.broker.forget(worker)
        lost = worker.kill(now)
        if worker in self._draining:
            self._draining.remove(worker)
        # The latest renewal was at most a third of a lease ago.
        free_at = now + self.lease_s * (1 - self.source.random() / 3)
        if lost:
            self.num_redelivered += len(lost)
            self.loop.at(free_at, lambda at, jobs: self.broker.put_back(jobs, at), lost)
        self.loop.at(now + self.device.start_s, lambda at, _: self.add_worker(at))

    def drain(self, now: float, worker: DeviceWorker) -> None:
        """A worker takes no more and goes when it has finished what it has."""
        worker.draining = True
        self._draining.append(worker)
        self.broker.forget(worker)
        self._go_if_empty(now, worker)

    def send(self, arrivals: Iterator[Job]) -> None:
        """Let requests arrive, in the order of their times."""
        job = next(arrivals, None)
        if job is not None:
            self._num_sent += 1
            self.loop.at(job.arrived_at, self._arrive, (job, arrivals))

    def run(self, until: float | None = None) -> None:
        """Go on until all is answered, or to that time."""
        while self.loop.now < (until if until is not None else float("inf")):
            self.loop.run(min(until or float("inf"), self.loop.now + 1.0))
            if until is None and len(self.ended) == self._num_sent:
                return

    def busy_shares(self) -> dict[str, float]:
        """Of the time so far: Redis, gateways and workers, and the workers' rows that were used."""
        now = self.loop.now
        self._count_workers(now)
        seconds = max(self._worker_s, 1e-9)
        busy = sum(worker.busy_s for worker in self.workers)
        row_steps = sum(worker.row_steps for worker in self.workers)
        most = seconds / self.device.table[-1] * self.device.max_rows
        return {
            "redis": min(1.0, self.broker.redis.busy_s / now),
            "gateways": min(1.0, sum(g.busy_s for g in self.gateways) / now / len(self.gateways)),
            "workers": min(1.0, busy / seconds),
            "rows": row_steps / most,
        }

    def _arrive(self, now: float, arrival: tuple[Job, Iterator[Job]]) -> None:
        job, arrivals = arrival
        self.num_arrived += 1
        job.gateway = self.source.randrange(len(self.gateways))
        sent_at = self.gateways[job.gateway].serve(now, self.costs.gateway.before)
        self.loop.at(sent_at, lambda at, put: self.broker.put(put, at), job)
        self.send(arrivals)

    def _on_done(self, worker: DeviceWorker, job: Job, now: float) -> None:
        self.broker.finish(worker, job, now)

    def _on_end(self, job: Job, now: float) -> None:
        self.broker.redis.serve(now, len(self.gateways) * self.costs.redis.wake)
        self.loop.at(now + 2 * self.costs.hop_s, self._look, job)
        for worker in list(self._draining):
            self._go_if_empty(now, worker)

    def _look(self, now: float, job: Job) -> None:
        read_at = self.broker.redis.serve(now, self.costs.redis.look) + 2 * self.costs.hop_s
        self.loop.at(read_at, self._answer, job)

    def _answer(self, now: float, job: Job) -> None:
        answered_at = self.gateways[job.gateway].serve(now, self._after_s)
        self.loop.at(answered_at + self.costs.client_s, self._answered, job)

    def _answered(self, now: float, job: Job) -> None:
        job.ended_at = now
        self.ended.append(job)

    def _go_if_empty(self, now: float, worker: DeviceWorker) -> None:
        if not worker.held:
            self._count_workers(now)
            self._draining.remove(worker)
            worker.alive = False

    def _count_workers(self, now: float) -> None:
        self._worker_s += self.num_alive * (now - self._counted_at)
        self._counted_at = now


def poisson_jobs(
    per_s: Callable[[float], float] | float,
    seconds: float,
    steps: Sequence[int],
    source: random.Random,
    rows: int = 2,
) -> Iterator[Job]:
    """Requests at random moments of [0, seconds), each number of steps equally often.

    per_s: the rate, or a function of the time, which is looked up at each request.
    """
    at_s = 0.0
    while True:
        rate = per_s(at_s) if callable(per_s) else per_s
        at_s += source.expovariate(rate)
        if at_s >= seconds:
            return
        yield Job(arrived_at=at_s, steps=source.choice(steps), rows=rows)


def run_timed(cluster: Cluster, until: float | None = None) -> dict[str, Any]:
    """Run, and say how long the computer took: wall seconds, events."""
    started = time.perf_counter()
    cluster.run(until)
    return {"wall_s": time.perf_counter() - started, "events": cluster.loop.num_events}
