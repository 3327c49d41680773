"""The worker: jobs from the queue through the engine, and their outcomes back.

Everything that speaks to the queue runs in one asyncio loop; the engine has a thread of its own;
large payloads are read and large files written by further threads. While Redis is away the engine
goes on, and outcomes are sent when it is back, unless the lease turns out to be lost.
"""

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from models.manifest import Manifest
from service import metrics
from service.attending import Attending
from service.backends.base import Backend
from service.device_use import DeviceUse
from service.endings import RETRY_S, Endings
from service.engine.calibration import Calibration
from service.engine.compute import ComputeThread
from service.engine.engine import Engine
from service.engine.work import Denoised, Failed, Finished, Previewed, Stepped, Tick, Work
from service.errors import QueueUnavailable
from service.heartbeat import Heartbeat
from service.intake import to_work
from service.jobs.job import Delivery
from service.jobs.queue import JobQueue
from service.log import get_logger
from service.running import Room, RunningJob, RunningJobs, has_news
from service.settings import Settings
from service.taking import Taking
from service.tasks import end_tasks
from service.tracing import JobTraces

log = get_logger(__name__)

_MAX_DONE = 64
_QUICK_BYTES = 2**16  # of a payload; it is read before a thread would have begun


def worker_name() -> str:
    """A name that no other process has, nor this machine's next process with the same id."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Worker:
    """One device's worker.

    Args:
        settings: lease, drain and cache limits.
        queue: opened here, closed by the caller.
        backend: loaded and warm.
        manifest: of the model that the backend runs.
        calibration: of the backend; without it its limits are taken as they are.
        traces: of the jobs; without them nothing is recorded.
        also: names of other models whose jobs it takes, because this one took their place.
        more_info: further fields of the announcement.
    """

    def __init__(
        self,
        settings: Settings,
        queue: JobQueue,
        backend: Backend,
        manifest: Manifest,
        *,
        calibration: Calibration | None = None,
        traces: JobTraces | None = None,
        also: Sequence[str] = (),
        more_info: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.name = worker_name()
        self._settings = settings
        self._queue = queue
        self._backend = backend
        self._manifest = manifest
        self._models = (manifest.name, *also)
        self._more_info = more_info
        self._traces = traces or JobTraces()
        self._engine = Engine(
            backend,
            shift=manifest.timestep_shift,
            calibration=calibration,
            cache_bytes=settings.prefill_cache_mb * 2**20,
            with_calls=self._traces.wants_calls,
        )
        self._compute = ComputeThread(self._engine, self._on_ticks, has_news)
        self._jobs = RunningJobs(_MAX_DONE)
        self._endings = Endings(queue, self.name, self._jobs, self._on_end)
        self._attending = Attending(queue, self._jobs, self._cancel)
        self._draining = asyncio.Event()
        self._taking = Taking(queue, self.name, self._room, self._accept, self._draining)
        self._heartbeat = Heartbeat(
            queue,
            self.name,
            self._jobs,
            lease_s=settings.lease_s,
            on_lost=self._lose,
            info=self._info,
            is_leaving=self._draining.is_set,
        )
        self.announced = self._heartbeat.announced  # set once gateways know of this worker
        self._left = asyncio.Event()  # a job left since this was last cleared
        self._device = DeviceUse(self._engine.step_alone_s, self._engine.row_steps_per_s)

    def drain(self) -> None:
        """Take no more jobs and come to an end; `run` then returns."""
        self._draining.set()
        self._taking.wake()

    async def run(self) -> None:
        """Work until `drain` is called.

        Raises:
            Exception: the engine itself broke; the queue gives the jobs to another worker.
        """
        await self._open_queue()
        broken = self._compute.start()
        helpers = [
            asyncio.create_task(self._heartbeat.keep_leases(), name="leases"),
            asyncio.create_task(self._heartbeat.keep_announced(), name="announcements"),
            asyncio.create_task(self._attending.watch(), name="cancellations"),
            asyncio.create_task(self._attending.publish(), name="progress"),
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
        while not self._draining.is_set():
            try:
                return await self._queue.open()
            except QueueUnavailable as error:
                log.warning("Redis does not answer", reason=str(error.__cause__))
                await asyncio.sleep(RETRY_S)

    async def _live(self) -> None:
        await self._taking.run()
        await self._give_back([job for job in self._jobs if not job.begun])
        await self._finish_running()

    def _room(self) -> Room:
        return self._jobs.room(self._engine.max_rows)

    def _accept(self, delivery: Delivery) -> None:
        job = delivery.job
        held = self._jobs.get(job.id)
        if held is not None:  # our own lease had ended, and nobody else took the job meanwhile
            held.delivery = delivery
            return
        metrics.QUEUE_WAIT_SECONDS.labels(job.task, job.priority).observe(delivery.waited_s)
        if delivery.num_deliveries > 1:
            metrics.REDELIVERIES.inc()
        running = self._jobs.add(delivery)
        running.trace = self._traces.begin(delivery)
        if len(delivery.payload or b"") <= _QUICK_BYTES:
            self._begin(running, self._to_work(delivery))
        else:
            self._endings.track(self._prepare(running))

    async def _prepare(self, job: RunningJob) -> None:
        """Read the payload on another thread, while the engine and the loop go on."""
        work = await asyncio.to_thread(self._to_work, job.delivery)
        if not (job.ending or job.released):
            self._begin(job, work)

    def _to_work(self, delivery: Delivery) -> Work | Exception:
        try:
            autoguided = self._manifest.guidance == "autoguidance"
            return to_work(delivery, self._models, autoguided=autoguided)
        except Exception as error:  # the per-job boundary
            return error

    def _begin(self, job: RunningJob, work: Work | Exception) -> None:
        if job.delivery.payload is not None:
            job.trace.add("prepare")
        if isinstance(work, Exception):
            self._endings.fail(job, work)
            return
        self._jobs.prepared(job, work)
        self._compute.submit(work)

    def _on_ticks(self, ticks: Sequence[Tick]) -> None:
        for event in [event for tick in ticks for event in tick.events]:
            job = self._jobs.get(event.job_id)
            if job is None or job.ending:
                continue
            match event:
                case Stepped():
                    job.steps = (event.step, event.num_steps)
                    job.moved = event.step < event.num_steps  # after the last comes the job's end
                case Denoised():
                    job.held_rows = 0
                case Previewed():
                    self._endings.preview(job, event)
                case Finished():
                    self._endings.succeed(job, event.tensors, event.timings_s)
                case Failed():
                    self._endings.fail(job, event.error)
        self._on_end()  # before anything else: what ends and what is taken keeps the device busy
        for tick in ticks:
            self._device.note(tick)
            self._traces.note(tick)
        self._attending.moved()

    def _on_end(self) -> None:
        metrics.ACTIVE_ROWS.labels(self.name).set(self._jobs.held_rows)
        self._left.set()
        self._taking.wake()

    def _cancel(self, job: RunningJob) -> None:
        self._compute.drop(job.id)
        self._endings.cancel(job)

    def _lose(self, job: RunningJob) -> None:
        self._compute.drop(job.id)
        self._jobs.lose(job)
        self._on_end()

    def _info(self) -> dict[str, Any]:
        """The announcement; measures how busy the device was since the last one."""
        metrics.DEVICE_UTILIZATION_RATIO.labels(self.name).set(self._device.pop_busy())
        metrics.DEVICE_MEMORY_BYTES.labels(self.name).set(self._backend.memory_bytes())
        metrics.ROW_STEPS_PER_SECOND.labels(self.name).set(self._device.row_steps_per_s)
        urgent = [job for job in self._jobs if job.urgent]
        return {
            "model": self._manifest.name,
            "backend": self._backend.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "active_rows": self._jobs.held_rows,
            "max_rows": self._engine.max_rows,
            "step_seconds": self._device.step_s
            if self._jobs.held_rows
            else self._engine.step_alone_s,
            "row_steps_left": self._jobs.row_steps_left,
            "urgent_rows": sum(job.held_rows for job in urgent),
            "urgent_row_steps_left": sum(job.row_steps_left for job in urgent),
            "row_steps_per_s": self._device.row_steps_per_s,
            **self._more_info(),
        }

    async def _finish_running(self) -> None:
        """Let running jobs end within the drain's limit."""
        deadline = time.monotonic() + self._settings.drain_timeout_s
        log.info("worker drains", worker=self.name, jobs=len(self._jobs))
        with suppress(QueueUnavailable):
            await self._queue.announce(self.name, {}, 0)
        while len(self._jobs) or len(self._endings):
            self._left.clear()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._left.wait(), left_s)

    async def _give_back(self, jobs: list[RunningJob]) -> int:
        """Free jobs for other workers; how many that were."""
        try:
            await self._queue.give_back(self.name, [job.delivery for job in jobs])
        except QueueUnavailable:
            log.warning("cannot give jobs back: Redis is away", jobs=len(jobs))
            return 0
        for job in jobs:
            self._compute.drop(job.id)
            self._jobs.release(job)
        return len(jobs)

    async def _leave(self) -> None:
        """Give back what did not end in time."""
        given_back = await self._give_back(list(self._jobs))
        with suppress(QueueUnavailable):
            await self._queue.announce(self.name, {}, 0)
        log.info("worker left", worker=self.name, given_back=given_back)
