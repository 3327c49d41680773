"""A worker process that changes its model while it serves.

Each model has a worker of its own, with its own engine. The next model is loaded while the worker
before it serves; then both run, one taking all new jobs, the other ending those that it has. So no
job meets two models, and none waits. For that time both models are in memory.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from models.manifest import BundleError, Manifest, read_manifest
from service import metrics
from service.choosing import free_memory
from service.errors import QueueUnavailable
from service.gpu_metrics import gpu_metrics, gpu_uuid
from service.jobs.queue import JobQueue
from service.jobs.reloads import Reload, Reloads
from service.loading import LoadedModel, load_model
from service.log import get_logger
from service.settings import Settings
from service.tasks import end_tasks
from service.tracing import JobTraces
from service.worker import Worker

log = get_logger(__name__)

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class ReloadState:
    """How far this process is with the request of that number; `reason`: of a refusal."""

    number: int
    state: Literal["loading", "done", "refused"] = "done"
    reason: str | None = None


@dataclass(frozen=True)
class _Serving:
    """A model and who runs it; also: the names of models that it was swapped in for."""

    model: LoadedModel
    also: tuple[str, ...]
    worker: Worker
    task: asyncio.Task[None]


class ReloadingWorker:
    """Serves a model, and after each request to reload that succeeds the next one.

    Args:
        settings: of the worker.
        queue: opened here, closed by the caller.
        reloads: where requests come from and models are described to gateways.
        model: the first.
        also: names of other models whose jobs it takes: those it was swapped in for.
        answered: number of the latest request that `model` already answers.
        index: of this process among those of this machine.
        traces: of the jobs.
        metrics_url: where a gateway on this machine finds this process's metrics, if anywhere.
    """

    def __init__(
        self,
        settings: Settings,
        queue: JobQueue,
        reloads: Reloads,
        model: LoadedModel,
        *,
        also: Sequence[str] = (),
        answered: int = 0,
        index: int = 0,
        traces: JobTraces | None = None,
        metrics_url: str | None = None,
    ) -> None:
        self._settings = settings
        self._queue = queue
        self._reloads = reloads
        self._index = index
        self._traces = traces
        self._metrics_url = metrics_url
        self._state = ReloadState(answered)
        self._asked_here = asyncio.Event()
        self._draining = False
        self._running: dict[asyncio.Task[None], Worker] = {}
        self._first = model, also

    def drain(self) -> None:
        """Take no more jobs and come to an end; `run` then returns."""
        self._draining = True
        for worker in self._running.values():
            worker.drain()

    def reload(self) -> None:
        """Read this process's own bundle again."""
        self._asked_here.set()

    async def run(self) -> None:
        """Work until `drain` is called.

        Raises:
            Exception: an engine broke; the queue gives its jobs to another process.
        """
        attending = asyncio.create_task(self._attend(self._begin(*self._first)), name="reloads")
        del self._first
        try:
            while self._running:
                everyone = (attending, *self._running)
                done, _ = await asyncio.wait(everyone, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._running.pop(task, None)
                    task.result()
        finally:
            await end_tasks([attending, *self._running])

    def _begin(self, model: LoadedModel, also: Sequence[str]) -> _Serving:
        also = tuple(dict.fromkeys(name for name in also if name != model.manifest.name))
        worker = Worker(
            self._settings,
            self._queue,
            model.backend,
            model.manifest,
            calibration=model.calibration,
            traces=self._traces,
            also=also,
            more_info=partial(self._info, model, also),
        )
        task = asyncio.create_task(self._run(worker), name="worker")
        self._running[task] = worker
        _show(model)
        return _Serving(model, also, worker, task)

    async def _run(self, worker: Worker) -> None:
        try:
            with gpu_metrics(worker.name, gpu_uuid(self._index)):
                await worker.run()
        finally:
            metrics.forget_worker(worker.name)

    def _info(self, model: LoadedModel, also: Sequence[str]) -> dict[str, Any]:
        """What is announced of a model and of reloads."""
        state = self._state
        return {
            "also": also,
            "digest": model.served.digest,
            "bundle": str(model.directory),
            # Clients read this too, and need not know where files lie.
            "unusable_backends": {
                name: reason.replace(str(model.directory), model.directory.name)
                for name, reason in model.unusable.items()
            },
            "metrics_url": self._metrics_url,
            "reload": {"number": state.number, "state": state.state, "reason": state.reason},
        }

    async def _attend(self, serving: _Serving) -> None:
        """Describe the model to gateways, and reload when somebody asks for it."""
        while True:
            served = serving.model.served
            try:
                await self._reloads.describe(served.digest, served.to_json())
                asked = await self._reloads.latest()
            except QueueUnavailable:
                asked = Reload(self._state.number)
            if asked.number not in (0, self._state.number):
                serving = await self._answer(serving, asked)
            elif asked.number != self._state.number:  # Redis has forgotten, and counts anew
                self._state = ReloadState(0)
            elif self._asked_here.is_set():
                self._asked_here.clear()
                serving = await self._answer(serving, asked=Reload(self._state.number))
            else:
                await _wait_for(self._asked_here, _LOOK_EVERY_S)

    async def _answer(self, serving: _Serving, asked: Reload) -> _Serving:
        """Swap the model, or keep the one that serves and say why; who serves then."""
        directory = Path(asked.bundle) if asked.bundle else serving.model.directory
        self._state = ReloadState(asked.number, "loading")
        log.info("bundle is loaded", bundle=str(directory), number=asked.number)
        try:
            # A process that is told to leave meanwhile stays, idle, until this has come to its end.
            model = await asyncio.to_thread(
                _load_next, self._settings, directory, self._index, serving.model
            )
        except Exception as error:  # whatever it is, the model that serves is not concerned
            metrics.RELOADS.labels("refused").inc()
            unexpected = None if isinstance(error, BundleError) else error
            log.error(
                "bundle refused", bundle=str(directory), reason=str(error), exc_info=unexpected
            )
            self._state = replace(self._state, state="refused", reason=str(error))
            return serving
        if self._draining:
            return serving
        successor = await self._swap(serving, model)
        if asked.bundle:
            await self._note_serving(asked.bundle)
        self._state = replace(self._state, state="done")
        metrics.RELOADS.labels("done").inc()
        log.info("bundle swapped", bundle=str(directory), model=model.manifest.name)
        await asyncio.wait([serving.task])  # its last jobs
        free_memory()
        return successor

    async def _swap(self, before: _Serving, model: LoadedModel) -> _Serving:
        """Let a successor take the jobs, and the worker before it come to its end."""
        successor = self._begin(model, (*before.also, before.model.manifest.name))
        announced = asyncio.create_task(successor.worker.announced.wait())
        await asyncio.wait((successor.task, announced), return_when=asyncio.FIRST_COMPLETED)
        await end_tasks([announced])
        before.worker.drain()
        return successor

    async def _note_serving(self, bundle: str) -> None:
        try:
            await self._reloads.note_serving(str(self._settings.bundle.resolve()), bundle)
        except QueueUnavailable:
            log.warning("a restart will load the configured bundle: Redis is away", bundle=bundle)


def check_fits(manifest: Manifest, before: Manifest) -> None:
    """Whether a model can take the jobs that were made for the one before it.

    Raises:
        BundleError: not, and why.
    """
    problems = [
        f"its {name} is {getattr(manifest, name)}, not {getattr(before, name)}"
        for name in ("image_size", "latent_shape")
        if getattr(manifest, name) != getattr(before, name)
    ]
    if missing := sorted(set(before.tasks) - set(manifest.tasks)):
        problems.append(f"it has no task {', '.join(missing)}")
    if before.other_sizes and not manifest.other_sizes:
        problems.append("it encodes and decodes no other sizes")
    if (manifest.class_names is None) != (before.class_names is None):
        problems.append("one of both reads sentences and the other classes")
    if problems:
        raise BundleError(
            f"{manifest.name} cannot take over from {before.name}: {'; '.join(problems)}; "
            "start gateways and workers anew with it"
        )


def _load_next(settings: Settings, directory: Path, index: int, before: LoadedModel) -> LoadedModel:
    check_fits(read_manifest(directory), before.manifest)
    return load_model(settings, directory, index, before=before)


def _show(model: LoadedModel) -> None:
    """What the metrics say of the model that takes jobs from now on."""
    metrics.MODEL.info({"name": model.manifest.name, "licence": model.manifest.licence})
    metrics.BACKEND_WORKERS.clear()
    metrics.BACKEND_WORKERS.labels(model.backend.name).set(1)
    metrics.UNUSABLE_BACKEND_WORKERS.clear()
    for name in model.unusable:
        metrics.UNUSABLE_BACKEND_WORKERS.labels(name).set(1)


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
