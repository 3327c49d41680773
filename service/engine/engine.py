"""Step-level continuous batching on one backend: every tick admits, prefills, steps and decodes.

A job that fails takes nothing with it: a call that raises is repeated in halves until the guilty
job is alone. The engine knows no queue and no HTTP; it is called from one thread.
"""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from models.bridge import Posterior
from models.context import Context, cat_contexts
from service.backends.base import Backend
from service.engine.images import to_float, to_uint8
from service.engine.isolation import isolate
from service.engine.picture import Picture, prefill, step
from service.engine.scheduler import MIN_ROWS, Scheduler
from service.engine.shapes import check_images, check_latents, check_source
from service.engine.slices import Piece, Pieces, SliceQueue, by_shape
from service.engine.work import (
    DecodeWork,
    Denoised,
    EncodeWork,
    Failed,
    Finished,
    PictureWork,
    Stepped,
    Tick,
    Work,
)
from service.errors import BackendError, OutOfMemory

T = TypeVar("T")
R = TypeVar("R")


class Engine:
    """Jobs in by `add`, out as events of `tick`.

    Args:
        backend: the runtime with its model.
        shift: the model's timestep shift.

    The rows of one step are limited by the backend; running out of memory lowers that limit
    until the process ends.
    """

    def __init__(self, backend: Backend, *, shift: float) -> None:
        limits = backend.limits
        self._backend = backend
        self._limits = limits
        self._shift = shift
        self._max_images = limits.max_images
        self._scheduler: Scheduler[Picture] = Scheduler(limits.max_rows)
        self._to_encode = SliceQueue("encode", limits.image_size)
        self._to_decode = SliceQueue("decode", limits.latent_shape[1:])
        self._gathered: tuple[list[Picture], Context] | None = None
        self._tick = Tick()  # collects what happens until the end of the next tick

    @property
    def max_rows(self) -> int:
        """Most rows of one step, as learned so far."""
        return self._scheduler.max_rows

    @property
    def has_work(self) -> bool:
        """False when a tick would do nothing."""
        idle = self._scheduler.is_empty and self._to_encode.is_empty and self._to_decode.is_empty
        return not idle or bool(self._tick.events)

    def add(self, work: Work) -> None:
        """Take a job; one that cannot be computed fails in the next tick."""
        try:
            self._accept(work)
        except Exception as error:  # the per-job boundary
            self._fail(work.id, error)

    def drop(self, job_id: str) -> None:
        """Forget a job between two ticks; unknown ids are ignored."""
        self._scheduler.drop(job_id)
        self._to_encode.drop(job_id)
        self._to_decode.drop(job_id)

    @torch.inference_mode()
    def tick(self) -> Tick:
        """One round: a slice of encoding, admission, a step of all active rows, a slice of
        decoding.
        """
        self._encode_slice()
        self._admit()
        self._step()
        self._decode_slice()
        done, self._tick = self._tick, Tick()
        return done

    def _accept(self, work: Work) -> None:
        match work:
            case PictureWork(source=None):
                self._add_picture(work, None, {})
            case PictureWork(source=Tensor() as source):
                check_source(source, self._limits)
                self._to_encode.put(work, source[None], {})
            case EncodeWork():
                check_images(work.images, self._limits)
                self._to_encode.put(work, work.images, {})
            case DecodeWork():
                check_latents(work.latents, self._limits)
                self._to_decode.put(work, work.latents, {})

    def _add_picture(
        self, work: PictureWork, source_latents: Tensor | None, timings_s: dict[str, float]
    ) -> None:
        picture = Picture.start(
            work,
            source_latents,
            latent_shape=self._limits.latent_shape,
            shift=self._shift,
            timings_s=timings_s,
        )
        self._scheduler.add(picture)

    def _encode_slice(self) -> None:
        def call(pieces: Sequence[Piece]) -> list[tuple[Tensor, ...]]:
            images = torch.stack([piece.tensor for piece in pieces])
            posterior = self._backend.encode(to_float(images))
            return list(zip(posterior.mean, posterior.logvar, strict=True))

        for job in self._run_slice(self._to_encode, call):
            mean, logvar = job.stacked()
            if isinstance(job.work, PictureWork):
                try:
                    self._add_picture(job.work, mean[0], job.timings_s)
                except Exception as error:  # the per-job boundary
                    self._fail(job.work.id, error)
            elif isinstance(job.work, EncodeWork):
                self._finish_encoding(job.work, Posterior(mean, logvar), job.timings_s)

    def _finish_encoding(
        self, work: EncodeWork, posterior: Posterior, timings_s: dict[str, float]
    ) -> None:
        latents = posterior.mean
        if work.sample:
            latents = posterior.sample(torch.Generator().manual_seed(work.seed))
        named = {"latents": latents, "mean": posterior.mean, "logvar": posterior.logvar}
        tensors = {name: tensor.to("cpu", torch.float32) for name, tensor in named.items()}
        if self._check_finite(work.id, tensors["latents"]):
            self._tick.events.append(Finished(work.id, tensors, timings_s))

    def _decode_slice(self) -> None:
        def call(pieces: Sequence[Piece]) -> list[tuple[Tensor, ...]]:
            images = self._backend.decode(torch.stack([piece.tensor for piece in pieces]))
            return [(image,) for image in to_uint8(images)]

        for job in self._run_slice(self._to_decode, call):
            (images,) = job.stacked()
            self._tick.events.append(Finished(job.work.id, {"images": images}, job.timings_s))

    def _run_slice(
        self, queue: SliceQueue, call: Callable[[Sequence[Piece]], list[tuple[Tensor, ...]]]
    ) -> list[Pieces]:
        """Run one slice of encoding or decoding, one call per shape; the jobs that it completes."""
        complete: list[Pieces] = []
        for group in by_shape(queue.take(self._max_images)):
            outcomes, seconds = self._isolate(queue.stage, group, call)
            pieces, results = [], []
            for piece, outcome in zip(group, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    self._fail(piece.job_id, outcome)
                else:
                    pieces.append(piece)
                    results.append(outcome)
            complete += queue.store(pieces, results, seconds)
        return complete

    def _admit(self) -> None:
        admitted = self._scheduler.admit()
        if not admitted:
            return
        outcomes, seconds = self._isolate(
            "prefill", admitted, lambda pictures: prefill(self._backend, pictures)
        )
        for picture, outcome in zip(admitted, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail(picture.id, outcome)
                continue
            picture.context = outcome
            picture.timings_s["prefill"] = seconds
            picture.started_at = time.perf_counter()

    def _step(self) -> None:
        batch = self._scheduler.next_batch()
        if not batch:
            self._gathered = None  # frees the contexts of pictures that are done
            return
        outcomes, _ = self._isolate(
            "denoise", batch, lambda pictures: step(self._backend, pictures, self._gather(pictures))
        )
        self._tick.step_rows = sum(picture.num_rows for picture in batch)
        advanced = []
        for picture, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail(picture.id, outcome)
                continue
            picture.state = outcome
            advanced.append(picture)
        done = self._scheduler.advance(advanced)
        for picture in advanced:
            self._tick.events.append(Stepped(picture.id, picture.step, picture.num_steps))
        for picture in done:
            self._finish_steps(picture)

    def _gather(self, pictures: Sequence[Picture]) -> Context:
        """Rows of all the pictures' contexts; kept while the same pictures step together."""
        if self._gathered is not None and self._gathered[0] == list(pictures):
            return self._gathered[1]
        context = cat_contexts([p.context for p in pictures if p.context is not None])
        self._gathered = (list(pictures), context)
        return context

    def _finish_steps(self, picture: Picture) -> None:
        picture.finish_steps()
        self._tick.events.append(Denoised(picture.id))
        if self._check_finite(picture.id, picture.x):
            self._to_decode.put(picture.work, picture.x[None], picture.timings_s)

    def _check_finite(self, job_id: str, latents: Tensor) -> bool:
        if bool(torch.isfinite(latents).all()):
            return True
        self._fail(job_id, BackendError("the model gave values that are not finite"))
        return False

    def _fail(self, job_id: str, error: Exception) -> None:
        self.drop(job_id)
        self._tick.events.append(Failed(job_id, error))

    def _isolate(
        self, stage: str, items: Sequence[T], call: Callable[[Sequence[T]], list[R]]
    ) -> tuple[list[R | Exception], float]:
        """`isolate`, timed, with its faults noted; the seconds include repeated calls."""
        started = time.perf_counter()
        outcomes = isolate(items, call, self._note_fault)
        seconds = time.perf_counter() - started
        self._tick.stage_seconds.append((stage, seconds))
        return outcomes, seconds

    def _note_fault(self, items: Sequence[object], error: Exception) -> None:
        self._tick.faults.append(error)
        if not isinstance(error, OutOfMemory):
            return
        num_rows = sum(item.num_rows for item in items if isinstance(item, Picture))
        if num_rows:
            limit = min(self._scheduler.max_rows, num_rows // 2)
            self._scheduler.limit_rows(max(MIN_ROWS, limit))
        else:
            size = sum(item.size for item in items if isinstance(item, Piece))
            self._max_images = max(1, min(self._max_images, int(size / 2)))
