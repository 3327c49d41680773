"""The worker: jobs from the queue through the engine, and their outcomes back.

Everything that speaks to the queue runs in one asyncio loop; the engine has a thread of its own,
and image files are written by further threads. While Redis is away the engine goes on, and
outcomes are sent when it is back, unless the lease turns out to be lost.
"""

import asyncio
import os
import socket
import time
import uuid
from contextlib import suppress
from typing import Any

from models.manifest import Manifest
from service import metrics
from service.backends.base import Backend
from service.endings import RETRY_S, Endings
from service.engine.compute import ComputeThread
from service.engine.engine import Engine
from service.engine.work import Denoised, Failed, Finished, Stepped, Tick
from service.errors import DeadlineExceeded, InvalidRequest, QueueUnavailable, ServiceError
from service.intake import to_work
from service.jobs.job import Delivery
from service.jobs.queue import JobQueue
from service.log import get_logger
from service.running import RunningJobs
from service.settings import Settings
from service.tasks import end_tasks

log = get_logger(__name__)

_BLOCK_MS = 1000  # a drain waits this long for a reading that is under way
_MAX_ENDING = 64
_LEASE_SHARE = 1 / 3  # of a lease between two renewals


def worker_name() -> str:
    """A name that no other process has, nor this machine's next process with the same id."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Worker:
    """One device's worker.

    Args:
        settings: lease, drain and row limits.
        queue: opened here, closed by the caller.
        backend: loaded and warm.
        manifest: of the model that the backend runs.
        metrics_url: where a gateway on this machine finds this process's metrics, if anywhere.
    """

    def __init__(
        self,
        settings: Settings,
        queue: JobQueue,
        backend: Backend,
        manifest: Manifest,
        *,
        metrics_url: str | None = None,
    ) -> None:
        self.name = worker_name()
        self._settings = settings
        self._queue = queue
        self._backend = backend
        self._manifest = manifest
        self._metrics_url = metrics_url
        self._engine = Engine(backend, shift=manifest.timestep_shift)
        self._compute = ComputeThread(self._engine, self._on_tick)
        self._jobs = RunningJobs(_MAX_ENDING)
        self._endings = Endings(queue, self.name, self._jobs, self._on_end)
        self._draining = asyncio.Event()
        self._ticked = asyncio.Event()
        self._room = asyncio.Event()  # rows became free, or a job left
        self._busy_s = 0.0
        self._busy_since = time.perf_counter()
        self._step_seconds = 0.0

    def drain(self) -> None:
        """Take no more jobs and come to an end; `run` then returns."""
        self._draining.set()

    async def run(self) -> None:
        """Work until `drain` is called.

        Raises:
            Exception: the engine itself broke; the queue gives the jobs to another worker.
        """
        await self._open_queue()
        broken = self._compute.start()
        helpers = [
            asyncio.create_task(self._keep_leases(), name="leases"),
            asyncio.create_task(self._watch_jobs(), name="watch"),
        ]
        life = asyncio.create_task(self._live(), name="life")
        log.info("worker ready", worker=self.name, backend=self._backend.name)
        try:
            done, _ = await asyncio.wait(
                (life, *helpers, broken), return_when=asyncio.FIRST_COMPLETED
            )
            for future in done:
                future.result()
        finally:
            self._compute.stop()
            await end_tasks([life, *helpers])
            await self._endings.abandon()
        await self._leave()

    async def _open_queue(self) -> None:
        while True:
            try:
                return await self._queue.open()
            except QueueUnavailable as error:
                log.warning("Redis does not answer", reason=str(error.__cause__))
                await asyncio.sleep(RETRY_S)

    async def _live(self) -> None:
        await self._take_jobs()
        await self._finish_running()

    async def _take_jobs(self) -> None:
        while not self._draining.is_set():
            self._room.clear()
            credit = self._jobs.credit(self._engine.max_rows)
            if not credit:
                await _first_set(self._room, self._draining)
                continue
            try:
                deliveries = await self._queue.take(self.name, credit, _BLOCK_MS)
                if self._draining.is_set():
                    await self._queue.give_back(self.name, deliveries)
                    return
            except QueueUnavailable as error:
                log.warning("cannot take jobs", reason=str(error.__cause__))
                await asyncio.sleep(RETRY_S)
                continue
            for delivery in deliveries:
                self._accept(delivery)

    def _accept(self, delivery: Delivery) -> None:
        job = delivery.job
        held = self._jobs.get(job.id)
        if held is not None:  # our own lease had ended, and nobody else took the job meanwhile
            held.delivery = delivery
            return
        metrics.QUEUE_WAIT_SECONDS.labels(job.task, job.priority).observe(delivery.waited_s)
        if delivery.num_deliveries > 1:
            metrics.REDELIVERIES.inc()
        try:
            if job.model != self._manifest.name:
                raise InvalidRequest(
                    f"this worker serves {self._manifest.name}, the job asks for {job.model}",
                    param="model",
                )
            autoguided = self._manifest.guidance == "autoguidance"
            work = to_work(delivery, autoguided=autoguided)
        except ServiceError as error:
            self._endings.refuse(delivery, error)
            return
        self._jobs.add(delivery, work)
        self._compute.submit(work)

    def _on_tick(self, tick: Tick) -> None:
        for event in tick.events:
            job = self._jobs.get(event.job_id)
            if job is None or job.ending:
                continue
            match event:
                case Stepped():
                    job.progress = (event.step, event.num_steps)
                case Denoised():
                    job.held_rows = 0
                case Finished():
                    self._endings.succeed(job, event.tensors, event.timings_s)
                case Failed():
                    self._endings.fail(job, event.error)
        for fault in tick.faults:
            log.warning("a batch failed and was split", reason=str(fault), exc_info=fault)
        self._busy_s += sum(seconds for _, seconds in tick.stage_seconds)
        if tick.step_rows:
            self._step_seconds = dict(tick.stage_seconds)["denoise"]
            metrics.STEP_BATCH_ROWS.observe(tick.step_rows)
            metrics.STEP_SECONDS.observe(self._step_seconds)
        self._ticked.set()
        self._on_end()

    def _on_end(self) -> None:
        metrics.ACTIVE_ROWS.labels(self.name).set(self._jobs.held_rows)
        self._room.set()

    async def _watch_jobs(self) -> None:
        """After each tick: publish progress, and stop jobs that were cancelled or are too late."""
        while True:
            await self._ticked.wait()
            self._ticked.clear()
            try:
                await self._stop_unwanted()
                for job_id, (step, num_steps) in self._jobs.pop_progress().items():
                    data = {"step": step, "num_steps": num_steps}
                    await self._queue.publish(job_id, "progress", data)
            except QueueUnavailable:
                await asyncio.sleep(RETRY_S)

    async def _stop_unwanted(self) -> None:
        jobs = self._jobs.interruptible
        cancelled = await self._queue.cancelled(job.work.id for job in jobs)
        for job in jobs:
            if job.ending or job.released or not (job.work.id in cancelled or job.expired):
                continue
            self._compute.drop(job.work.id)
            if job.work.id in cancelled:
                self._endings.cancel(job)
            else:
                late = "the deadline passed while the job ran: allow more time"
                self._endings.fail(job, DeadlineExceeded(late))

    async def _keep_leases(self) -> None:
        """Renew the leases and say that this worker lives, three times per lease."""
        lease_s = self._settings.lease_s
        while True:
            pause_s = lease_s * _LEASE_SHARE
            jobs = list(self._jobs)
            try:
                lost = await self._queue.renew(self.name, [job.delivery for job in jobs])
                for job in jobs:
                    # A job that is ending learns of its lease when its outcome is sent.
                    if job.work.id in lost and not job.ending:
                        self._compute.drop(job.work.id)
                        self._jobs.lose(job)
                        self._on_end()
                ttl_s = 0 if self._draining.is_set() else lease_s
                await self._queue.announce(self.name, self._info(), ttl_s)
            except QueueUnavailable:
                pause_s = min(pause_s, RETRY_S)
            await asyncio.sleep(pause_s)

    def _info(self) -> dict[str, Any]:
        """The announcement; measures how busy the device was since the last one."""
        now = time.perf_counter()
        busy = self._busy_s / max(now - self._busy_since, 1e-9)
        self._busy_s, self._busy_since = 0.0, now
        metrics.DEVICE_UTILIZATION_RATIO.labels(self.name).set(min(1.0, busy))
        metrics.DEVICE_MEMORY_BYTES.labels(self.name).set(self._backend.memory_bytes())
        return {
            "model": self._manifest.name,
            "backend": self._backend.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "active_rows": self._jobs.held_rows,
            "max_rows": self._engine.max_rows,
            "step_seconds": self._step_seconds,
            "metrics_url": self._metrics_url,
        }

    async def _finish_running(self) -> None:
        """Let running jobs end within the drain's limit."""
        deadline = time.monotonic() + self._settings.drain_timeout_s
        log.info("worker drains", worker=self.name, jobs=len(self._jobs))
        with suppress(QueueUnavailable):
            await self._queue.announce(self.name, {}, 0)
        while len(self._jobs) or len(self._endings):
            self._room.clear()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._room.wait(), left_s)

    async def _leave(self) -> None:
        """Give back what did not end in time."""
        rest = [job.delivery for job in self._jobs]
        try:
            await self._queue.give_back(self.name, rest)
            await self._queue.announce(self.name, {}, 0)
        except QueueUnavailable:
            log.warning("left without giving jobs back: Redis is away", jobs=len(rest))
        log.info("worker left", worker=self.name, given_back=len(rest))


async def _first_set(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
