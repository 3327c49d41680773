"""Step-level continuous batching on one backend: every tick admits, prefills, steps and decodes.

A job that fails takes nothing with it: a call that raises is repeated in halves until the guilty
job is alone. The engine knows no queue and no HTTP; it is called from one thread.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from models.context import Context, cat_contexts
from service.backends.base import Backend
from service.engine.calibration import Calibration
from service.engine.coding import NOT_FINITE, Coder
from service.engine.deadlines import hopeless, passed
from service.engine.pace import Pace, SpareTime
from service.engine.picture import Advanced, Picture, step
from service.engine.prefilling import Prefiller
from service.engine.previews import Preview
from service.engine.scheduler import MIN_ROWS, Scheduler
from service.engine.shapes import check_images, check_latents, check_source
from service.engine.slices import Piece
from service.engine.ticklog import TickLog
from service.engine.work import (
    DecodeWork,
    Denoised,
    EncodeWork,
    Failed,
    PictureWork,
    Stepped,
    Tick,
    Work,
)
from service.errors import BackendError, OutOfMemory

_CACHE_BYTES = 64 * 2**20
_USUAL_ROWS = 2
_SOURCES_SHARE = 8  # one part in so many of the cache is for the latents of sources


class Engine:
    """Jobs in by `add`, out as events of `tick`.

    Args:
        backend: the runtime with its model.
        shift: the model's timestep shift.
        calibration: of the backend; without it its limits are taken as they are.
        cache_bytes: for prefilled prompts and sources that may come again; 0 remembers none.
        with_calls: ticks tell which jobs each call was for.
        clock: seconds of any origin, for durations.
        now: Unix seconds, for deadlines.

    The rows of one step are limited by the calibration; running out of memory lowers that limit
    until the process ends.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        shift: float,
        calibration: Calibration | None = None,
        cache_bytes: int = _CACHE_BYTES,
        with_calls: bool = False,
        clock: Callable[[], float] = time.perf_counter,
        now: Callable[[], float] = time.time,
    ) -> None:
        calibration = calibration or Calibration.unmeasured(backend.limits)
        self._backend = backend
        self._limits = backend.limits
        self._shift = shift
        self._calibration = calibration
        self._clock = clock
        self._now = now
        self._pace = Pace(calibration)
        self._spare = SpareTime(self._pace)
        self._log = TickLog(self._note_fault, clock, with_calls=with_calls)
        self._scheduler: Scheduler[Picture] = Scheduler(calibration.max_rows)
        for_sources = cache_bytes // _SOURCES_SHARE
        self._prefiller = Prefiller(backend, calibration, cache_bytes - for_sources)
        self._coder = Coder(backend, calibration, self._spare, self._log, self._fail, for_sources)
        self._gathered: tuple[list[tuple[Picture, int]], Context, int] | None = None
        self._last_rows = 0  # of the latest step

    @property
    def max_rows(self) -> int:
        """Most rows of one step, as learned so far."""
        return self._scheduler.max_rows

    @property
    def step_alone_s(self) -> float:
        """Seconds of a step of one guided picture alone."""
        return self._pace.step_s(_USUAL_ROWS)

    @property
    def row_steps_per_s(self) -> float:
        """Model rows times steps in a second at a full batch."""
        return self._pace.row_steps_per_s

    @property
    def has_work(self) -> bool:
        """False when a tick would do nothing."""
        return not (self._scheduler.is_empty and self._coder.is_empty and self._log.is_empty)

    def add(self, work: Work) -> None:
        """Take a job; one that cannot be computed fails in the next tick."""
        try:
            self._accept(work)
        except Exception as error:  # the per-job boundary
            self._fail(work.id, error)

    def drop(self, job_id: str) -> None:
        """Forget a job between two ticks; unknown ids are ignored."""
        self._scheduler.drop(job_id)
        self._coder.drop(job_id)

    @torch.inference_mode()
    def tick(self) -> Tick:
        """One round: a slice of encoding, a step of the rows that are chosen for it, a slice of
        decoding and of previews.
        """
        started = self._clock()
        self._drop_late()
        running = any(picture.context is not None for picture in self._scheduler)
        self._spare.begin(self._pace.step_s(self._last_rows) if running else None)
        for source in self._coder.encode_slice():
            self._start(source.work, source.latents, source.timings_s)
        self._step(self._prefilled(self._scheduler.next_batch()))
        self._coder.decode_slice()
        self._coder.preview_slice()
        self._pace.note_tick(self._last_rows, self._clock() - started)
        self._log.tick.step_s = self._pace.step_s(self._last_rows)
        self._log.tick.row_steps_per_s = self.row_steps_per_s
        return self._log.end()

    def _accept(self, work: Work) -> None:
        match work:
            case PictureWork():
                check_source(work.source, work.mask, self._limits)
                if work.source is None:
                    self._start(work, None, {})
                elif (latents := self._coder.known_source(work)) is not None:
                    self._start(work, latents, {"encode": 0.0})
                else:
                    self._coder.put_source(work, work.source)
            case EncodeWork():
                check_images(work.images, self._limits)
                self._coder.put_images(work)
            case DecodeWork():
                check_latents(work.latents, self._limits)
                self._coder.put_latents(work, work.latents, {})

    def _start(
        self, work: PictureWork, source_latents: Tensor | None, timings_s: dict[str, float]
    ) -> None:
        try:
            picture = Picture.start(
                work,
                source_latents,
                latent_shape=self._limits.latent_shape,
                shift=self._shift,
                timings_s=timings_s,
            )
        except Exception as error:  # the per-job boundary
            self._fail(work.id, error)
        else:
            self._scheduler.add(picture)

    def _drop_late(self) -> None:
        """Fail the jobs whose deadline has passed or cannot be met."""
        now = self._now()
        for picture in self._scheduler:
            if picture.deadline_at is None:
                continue
            step_s = self._pace.step_s(max(self._last_rows, picture.rows_now))
            error = passed(picture.deadline_at, now) or hopeless(picture, step_s, now)
            if error is not None:
                self._fail(picture.id, error)
        for work in list(self._coder):
            error = passed(work.deadline_at, now)
            if error is not None:
                self._fail(work.id, error)

    def _prefilled(self, batch: list[Picture]) -> list[Picture]:
        """The pictures of a batch that have their context, after new ones got theirs as far as the
        time allows; the others are chosen again for the next step.
        """
        new = [picture for picture in batch if picture.context is None]
        if not new:
            return batch
        free = self._spare.pieces("prefill", sum(picture.num_rows for picture in new))
        taken: list[Picture] = []
        num_missing = 0
        for picture in new:
            rows = self._prefiller.num_missing(picture)
            if taken and num_missing + rows > free:
                break
            taken.append(picture)
            num_missing += rows
        outcomes, seconds = self._log.isolate("prefill", taken, self._prefiller.contexts)
        self._spare.spend("prefill", num_missing, seconds)
        for picture, outcome in zip(taken, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail(picture.id, outcome)
                continue
            picture.context = outcome
            picture.timings_s["prefill"] = seconds
            picture.started_at = self._clock()
        return [picture for picture in batch if picture.context is not None]

    def _step(self, batch: list[Picture]) -> None:
        self._last_rows = sum(picture.rows_now for picture in batch)
        if not batch:
            self._gathered = None  # frees the contexts of pictures that are done
            return
        outcomes, seconds = self._log.isolate("denoise", batch, self._advanced)
        self._pace.note_step(self._last_rows, seconds)
        self._log.tick.step_rows = self._last_rows
        self._log.tick.padding_rows = self._padding(self._last_rows)
        advanced = []
        for picture, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail(picture.id, outcome)
                continue
            picture.state = outcome.state
            advanced.append(picture)
            if outcome.clean is not None:
                self._put_preview(picture, outcome.clean)
        done = self._scheduler.advance(advanced)
        for picture in advanced:
            self._log.emit(Stepped(picture.id, picture.step, picture.num_steps))
        for picture in done:
            self._finish_steps(picture)

    def _advanced(self, pictures: Sequence[Picture]) -> list[Advanced]:
        context, padding = self._gather(pictures)
        return step(self._backend, pictures, context, padding)

    def _gather(self, pictures: Sequence[Picture]) -> tuple[Context, int]:
        """Rows of the pictures' contexts for one step, and how many of them are padding; kept while
        the same rows step together.
        """
        rows = [(picture, picture.rows_now) for picture in pictures]
        if self._gathered is None or self._gathered[0] != rows:
            parts = [_rows_of(picture, count) for picture, count in rows]
            padding = self._padding(sum(count for _, count in rows))
            if padding:
                parts.append(parts[0].select([0] * padding))
            self._gathered = (rows, cat_contexts(parts), padding)
        return self._gathered[1:]

    def _padding(self, num_rows: int) -> int:
        return self._calibration.padded(num_rows, self.max_rows) - num_rows

    def _put_preview(self, picture: Picture, clean: Tensor) -> None:
        """Called before the step is counted."""
        done = picture.step + 1
        self._coder.put_preview(
            Preview(
                job_id=picture.id,
                index=picture.preview_steps.index(done),
                tensor=clean,
                step=done,
                num_steps=picture.num_steps,
            )
        )

    def _finish_steps(self, picture: Picture) -> None:
        picture.timings_s["denoise"] = self._clock() - picture.started_at
        self._log.emit(Denoised(picture.id))
        if bool(torch.isfinite(picture.x).all()):
            self._coder.put_latents(picture.work, picture.x[None], picture.timings_s)
        else:
            self._fail(picture.id, BackendError(NOT_FINITE))

    def _fail(self, job_id: str, error: Exception) -> None:
        self.drop(job_id)
        self._log.emit(Failed(job_id, error))

    def _note_fault(self, items: Sequence[object], error: Exception) -> None:
        if not isinstance(error, OutOfMemory):
            return
        self._prefiller.forget()
        num_rows = sum(item.rows_now for item in items if isinstance(item, Picture))
        if num_rows:
            limit = min(self._scheduler.max_rows, num_rows // 2)
            self._scheduler.limit_rows(max(MIN_ROWS, limit))
        else:
            self._coder.limit_images(sum(item.size for item in items if isinstance(item, Piece)))


def _rows_of(picture: Picture, count: int) -> Context:
    """The first rows of a picture's context."""
    assert picture.context is not None
    if count == picture.num_rows:
        return picture.context
    return picture.context.select(range(count))
