"""Encode and decode, a slice in each tick: jobs of their own, sources, finished pictures, previews.

B images of one job, C latent channels, h and w rows and columns of latents.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.bridge import Posterior
from service.backends.base import Backend
from service.engine.cache import ByteCache
from service.engine.calibration import Calibration
from service.engine.images import to_float, to_uint8
from service.engine.pace import SpareTime
from service.engine.previews import Preview, PreviewQueue
from service.engine.slices import Piece, Pieces, SliceQueue, by_shape
from service.engine.ticklog import TickLog
from service.engine.work import (
    DecodeWork,
    EncodeWork,
    Finished,
    PictureWork,
    Previewed,
    Work,
)
from service.errors import BackendError

_Call = Callable[[Sequence[Piece]], list[tuple[Tensor, ...]]]


@dataclass(frozen=True, eq=False)
class Source:
    """An edit whose source is encoded: latents (C, h, w)."""

    work: PictureWork
    latents: Tensor
    timings_s: dict[str, float]


class Coder:
    """What waits for encode and decode, and its results.

    Args:
        fail: called with a job that failed.
        cache_bytes: for the latents of sources, each kept for its owner alone.
    """

    def __init__(
        self,
        backend: Backend,
        calibration: Calibration,
        spare: SpareTime,
        log: TickLog,
        fail: Callable[[str, Exception], None],
        cache_bytes: int,
    ) -> None:
        self._backend = backend
        self._calibration = calibration
        self._spare = spare
        self._log = log
        self._fail = fail
        self._max_images = calibration.max_images
        self._to_encode = SliceQueue("encode", backend.limits.image_size)
        self._to_decode = SliceQueue("decode", backend.limits.latent_shape[1:])
        self._previews = PreviewQueue()
        self._sources: ByteCache[Hashable, Tensor] = ByteCache(cache_bytes)

    @property
    def is_empty(self) -> bool:
        """True when nothing waits."""
        return self._to_encode.is_empty and self._to_decode.is_empty and not len(self._previews)

    def __iter__(self) -> Iterator[Work]:
        """Jobs that wait for encode or decode."""
        yield from self._to_encode
        yield from self._to_decode

    def limit_images(self, size: float) -> None:
        """Memory did not hold images of that area, as a multiple of the model's own size."""
        self._max_images = max(1, min(self._max_images, int(size / 2)))
        self._sources.clear()

    def drop(self, job_id: str) -> None:
        """Forget a job."""
        self._to_encode.drop(job_id)
        self._to_decode.drop(job_id)
        self._previews.drop(job_id)

    def known_source(self, work: PictureWork) -> Tensor | None:
        """Latents (C, h, w) of an edit's source, if they were computed before."""
        return self._sources.get(_source_key(work))

    def put_source(self, work: PictureWork, source: Tensor) -> None:
        """Encode an edit's source (3, H, W); `encode_slice` gives it back."""
        self._to_encode.put(work, source[None], {}, _source_key(work))

    def put_images(self, work: EncodeWork) -> None:
        """Encode a job's images."""
        self._to_encode.put(work, work.images, {})

    def put_latents(
        self, work: PictureWork | DecodeWork, latents: Tensor, timings_s: dict[str, float]
    ) -> None:
        """Decode latents (B, C, h, w), which ends the job; its previews are not wanted any more."""
        self._previews.drop(work.id)
        self._to_decode.put(work, latents, timings_s)

    def put_preview(self, preview: Preview) -> None:
        """Decode a preview when there is time."""
        self._previews.put(preview)

    def encode_slice(self) -> list[Source]:
        """One slice of encoding; the sources that are ready now."""
        ready = []
        for job in self._run_slice(self._to_encode, self._encode):
            mean, logvar = job.stacked()
            if isinstance(job.work, PictureWork):
                self._sources.put(_source_key(job.work), mean[0], mean[0].nbytes)
                ready.append(Source(job.work, mean[0], job.timings_s))
                ready += self._alike(ready[-1])
            elif isinstance(job.work, EncodeWork):
                self._finish_encoding(job.work, Posterior(mean, logvar), job.timings_s)
        return ready

    def _alike(self, source: Source) -> list[Source]:
        """Edits of the same source that wait for the same latents: they wait no more."""
        key = _source_key(source.work)
        works = [work for work in self._to_encode if isinstance(work, PictureWork)]
        alike = [work for work in works if _source_key(work) == key]
        for work in alike:
            self._to_encode.drop(work.id)
        return [Source(work, source.latents, dict(source.timings_s)) for work in alike]

    def decode_slice(self) -> None:
        """One slice of decoding."""
        for job in self._run_slice(self._to_decode, self._decode):
            (images,) = job.stacked()
            self._log.emit(Finished(job.work.id, {"images": images}, job.timings_s))

    def preview_slice(self) -> None:
        """As many previews as there is time for; one that fails is left out."""
        if not len(self._previews):
            return
        previews = self._previews.take(self._spare.pieces("preview", self._max_images))
        if not previews:
            return
        outcomes, seconds = self._log.isolate("preview", previews, self._decode)
        self._spare.spend("preview", len(previews), seconds)
        for preview, outcome in zip(previews, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._log.tick.faults.append(outcome)
                continue
            images = outcome[0][None]
            self._log.emit(
                Previewed(preview.job_id, preview.index, preview.step, preview.num_steps, images)
            )

    def _encode(self, pieces: Sequence[Piece]) -> list[tuple[Tensor, ...]]:
        """Mean and logvar of each; pieces that are the same are encoded once."""
        keys = [index if piece.key is None else piece.key for index, piece in enumerate(pieces)]
        unique = dict(zip(keys, pieces, strict=True))
        batch = torch.stack([piece.tensor for piece in unique.values()])
        posterior = self._backend.encode(to_float(self._filled(batch)))
        moments = zip(posterior.mean, posterior.logvar, strict=True)
        results = dict(zip(unique, moments, strict=False))  # beyond them is filling
        return [results[key] for key in keys]

    def _decode(self, pieces: Sequence[Piece]) -> list[tuple[Tensor, ...]]:
        batch = torch.stack([piece.tensor for piece in pieces])
        images = to_uint8(self._backend.decode(self._filled(batch))[: len(pieces)])
        return [(image,) for image in images]

    def _filled(self, batch: Tensor) -> Tensor:
        """A batch made as large as the backend likes it with copies of its first piece."""
        missing = self._calibration.padded(len(batch), self._max_images) - len(batch)
        return torch.cat([batch, batch[:1].expand(missing, *batch.shape[1:])]) if missing else batch

    def _run_slice(self, queue: SliceQueue, call: _Call) -> list[Pieces]:
        """Run one slice, one call per shape; the jobs that it completes."""
        if queue.is_empty:
            return []
        complete: list[Pieces] = []
        count = self._spare.pieces(queue.stage, self._max_images)
        for group in by_shape(queue.take(count)):
            outcomes, seconds = self._log.isolate(queue.stage, group, call)
            self._spare.spend(queue.stage, sum(piece.size for piece in group), seconds)
            pieces, results = [], []
            for piece, outcome in zip(group, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    self._fail(piece.job_id, outcome)
                else:
                    pieces.append(piece)
                    results.append(outcome)
            complete += queue.store(pieces, results, seconds)
        return complete

    def _finish_encoding(
        self, work: EncodeWork, posterior: Posterior, timings_s: dict[str, float]
    ) -> None:
        latents = posterior.mean
        if work.sample:
            latents = posterior.sample(torch.Generator().manual_seed(work.seed))
        named = {"latents": latents, "mean": posterior.mean, "logvar": posterior.logvar}
        tensors = {name: tensor.to("cpu", torch.float32) for name, tensor in named.items()}
        if bool(torch.isfinite(tensors["latents"]).all()):
            self._log.emit(Finished(work.id, tensors, timings_s))
        else:
            self._fail(work.id, BackendError(NOT_FINITE))


NOT_FINITE = "the model gave values that are not finite"


def _source_key(work: PictureWork) -> Hashable:
    return work.owner, work.source_key
