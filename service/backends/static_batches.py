"""Calls at a few batch sizes only, on memory that stays where it is.

Compiled kernels are made for one shape, and a CUDA graph reads and writes the same addresses in
every replay. So a batch is copied into the buffers of the next larger size that was prepared. What
the rows beyond it compute is thrown away, and no row depends on another.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Tensors: TypeAlias = tuple[Tensor, ...]
Run: TypeAlias = Callable[[], Tensors]
_Shapes: TypeAlias = tuple[tuple[int, ...], ...]


class Capture(Protocol):
    """Records a call that always reads the same memory; see `CudaGraphs`."""

    def __call__(self, run: Run) -> Run:
        """What repeats `run`. Outputs are valid until anything that was captured runs again."""
        ...


def uncaptured(run: Run) -> Run:
    """The call itself: for devices that record nothing."""
    return run


@dataclass(eq=False)
class _Bucket:
    """One size that is ready: `run` computes what stands in the buffers."""

    buffers: Tensors
    run: Run


class StaticBatches:
    """A function of batches, ready at some sizes. All inputs have the batch as their first axis.

    Args:
        function: of tensors on the device; gives a tuple of batches.
        capture: records its calls.
    """

    def __init__(self, function: Callable[..., Tensors], capture: Capture) -> None:
        self._function = function
        self._capture = capture
        self._buckets: dict[_Shapes, dict[int, _Bucket]] = {}
        self._storages: dict[tuple[int, torch.dtype], Tensor] = {}
        self._latest: tuple[_Bucket, Callable[[], object | None]] | None = None

    def prepare(self, *inputs: Tensor) -> None:
        """Make batches of this size and of these shapes ready; again is free.

        The largest size first, so that the smaller ones share its memory.

        Args:
            inputs: an example on the device. Later ones are converted to its types.
        """
        size, shapes = len(inputs[0]), _shapes(inputs)
        buckets = self._buckets.setdefault(shapes, {})
        if size in buckets:
            return
        buffers = tuple(self._buffer(index, tensor) for index, tensor in enumerate(inputs))
        self._latest = None
        for buffer, tensor in zip(buffers, inputs, strict=True):
            buffer.copy_(tensor)
        bucket = _Bucket(buffers, self._capture(lambda: self._function(*buffers)))
        bucket.run()  # where nothing is recorded, this is what compiles
        buckets[size] = bucket

    def __call__(
        self,
        *changing: Tensor,
        fixed: Callable[[], Tensors] = tuple,
        owner: object | None = None,
    ) -> Tensors | None:
        """Outputs of a batch, from any device and in memory of their own; None: no size is ready.

        Args:
            changing: inputs that differ in every call.
            fixed: gives the inputs that follow them. They are not asked for and not copied again
                while calls have the same owner.
            owner: what they belong to; it is not kept alive.
        """
        size, bucket = len(changing[0]), None
        if self._latest is not None and owner is not None and self._latest[1]() is owner:
            bucket = self._latest[0]
        else:
            inputs = (*changing, *fixed())
            bucket = self._next_larger(size, _shapes(inputs))
            if bucket is None:
                return None
            for buffer, tensor in zip(bucket.buffers, inputs, strict=True):
                buffer[:size].copy_(tensor)
            self._latest = None if owner is None else (bucket, weakref.ref(owner))
            return _rows(bucket, size)
        for buffer, tensor in zip(bucket.buffers, changing, strict=False):
            buffer[:size].copy_(tensor)
        return _rows(bucket, size)

    def _next_larger(self, size: int, shapes: _Shapes) -> _Bucket | None:
        buckets = self._buckets.get(shapes, {})
        return buckets[min(ready)] if (ready := [n for n in buckets if n >= size]) else None

    def _buffer(self, index: int, like: Tensor) -> Tensor:
        """Memory of an input: the start of what its largest size has."""
        key = index, like.dtype
        storage = self._storages.get(key)
        if storage is None or storage.numel() < like.numel():
            # Sizes that were prepared before keep the memory they know.
            storage = self._storages[key] = torch.zeros(
                like.numel(), dtype=like.dtype, device=like.device
            )
        return storage[: like.numel()].view(like.shape)


def _shapes(inputs: Tensors) -> _Shapes:
    """Those of one row."""
    return tuple(tuple(tensor.shape[1:]) for tensor in inputs)


def _rows(bucket: _Bucket, size: int) -> Tensors:
    """The first rows of its outputs, before the next call overwrites them."""
    return tuple(output[:size].clone() for output in bucket.run())
