"""What a backend bears and how fast it is, measured at start instead of guessed."""

import time
from dataclasses import dataclass

from service.backends.base import Backend, Call, Limits
from service.engine.scheduler import MIN_ROWS
from service.errors import BackendError, OutOfMemory

_GROWTH = 1.05  # a batch twice as large whose rate is not higher by this is not worth its delay
_MEMORY_SHARE = 0.8  # of the free memory that one call may take
# Four guided pictures: they step side by side even where larger batches do not pay, so that a
# short one need not wait for the end of a long one.
_SHARING_ROWS = 8
# Images in one call even where more of them do not pay: beside steps a slice is cut by its time.
_LEAST_IMAGES = 4
_IMAGES_SHARE = 0.2  # of the time limit, for each of encode and decode


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The sizes of batches, and what they cost before the first real one has run.

    max_rows, max_images: of one velocity call, and of one encode or decode call at the model's own
    size; step_s: (rows, seconds) of velocity calls, ascending; prefill_s, encode_s, decode_s:
    seconds of a row or an image; buckets: the sizes that batches are filled up to, ascending, none
    where that does not pay. Unknown seconds are 0.
    """

    max_rows: int
    max_images: int
    step_s: tuple[tuple[int, float], ...] = ()
    prefill_s: float = 0.0
    encode_s: float = 0.0
    decode_s: float = 0.0
    buckets: tuple[int, ...] = ()

    @classmethod
    def unmeasured(cls, limits: Limits) -> "Calibration":
        """The limits as they are, and no idea of the time."""
        return cls(max_rows=limits.max_rows, max_images=limits.max_images)

    def padded(self, count: int, most: int) -> int:
        """How large a batch of `count` is made: the next bucket, unless that is above `most`."""
        bucket = next((size for size in self.buckets if size >= count), count)
        return bucket if bucket <= most else count


def calibrate(
    backend: Backend, *, max_rows: int | None = None, limit_s: float = 1.0
) -> Calibration:
    """Measure a loaded and warm backend that nothing else uses meanwhile.

    Args:
        max_rows: taken as it is instead of the measured one.
        limit_s: about how long it may take, beside making sizes ready: no larger batch is tried
            after that.
    """
    limits = backend.limits
    steps = _Trial(backend, "velocity", max_rows or limits.max_rows, limit_s)
    encodes = _Trial(backend, "encode", limits.max_images, limit_s * _IMAGES_SHARE)
    decodes = _Trial(backend, "decode", limits.max_images, limit_s * _IMAGES_SHARE)
    prefills = _Trial(backend, "prefill", 2, limit_s)
    if max_rows is None and not steps.seconds:
        max_rows = limits.max_rows  # a model without a denoiser steps nothing
    elif max_rows is None:
        rows = min(max(steps.worthwhile, _SHARING_ROWS), limits.max_rows)
        max_rows = max(min(rows, steps.possible), MIN_ROWS)
    return Calibration(
        max_rows=max_rows,
        max_images=max(1, min(encodes.images, decodes.images)),
        step_s=tuple(steps.seconds),
        prefill_s=prefills.piece_s,
        encode_s=encodes.piece_s,
        decode_s=decodes.piece_s,
        buckets=steps.sizes_up_to(max_rows) if limits.padded else (),
    )


class _Trial:
    """One call at sizes 1, 2, 4, ... until the rate stays twice, memory is short or time is up.

    seconds: (size, seconds) of those that succeeded; most: where it ends at the latest; possible:
    the largest size that memory is known to hold, `most` when it was never short.
    """

    def __init__(self, backend: Backend, call: Call, most: int, limit_s: float) -> None:
        self.seconds: list[tuple[int, float]] = []
        self.most = self.possible = most
        free = backend.free_bytes()
        ends_at = time.perf_counter() + limit_s
        size, num_flat, best = 1, 0, 0.0
        while num_flat < 2:
            try:
                cost = backend.measure(call, size)
            except OutOfMemory:
                self.possible = size // 2
                return
            except BackendError:  # the model has no such call
                return
            ends_at += cost.preparing_s
            self.seconds.append((size, cost.seconds))
            rate = size / max(cost.seconds, 1e-9)
            # One flat doubling may be noise of a busy machine.
            num_flat = num_flat + 1 if rate < _GROWTH * best else 0
            best = max(best, rate)
            if size == most or time.perf_counter() > ends_at:
                return
            grown = min(2 * size, most)
            if free is not None and cost.memory_bytes * grown / size > _MEMORY_SHARE * free:
                self.possible = size
                return
            size = grown

    @property
    def worthwhile(self) -> int:
        """The smallest size of nearly the best rate; 0 if nothing was measured."""
        rates = [(size, size / max(seconds, 1e-9)) for size, seconds in self.seconds]
        best = max((rate for _, rate in rates), default=0.0)
        return next((size for size, rate in rates if _GROWTH * rate >= best), 0)

    @property
    def images(self) -> int:
        """The number of images to encode or decode in one call."""
        return min(max(self.worthwhile, _LEAST_IMAGES), self.most, self.possible)

    @property
    def piece_s(self) -> float:
        """Seconds of one piece at the most efficient size; 0 if nothing was measured."""
        return min((seconds / size for size, seconds in self.seconds), default=0.0)

    def sizes_up_to(self, most: int) -> tuple[int, ...]:
        """The measured sizes, and `most`."""
        return tuple(sorted({size for size, _ in self.seconds if size < most} | {most}))
