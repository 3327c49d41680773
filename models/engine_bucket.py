"""One profile of a TensorRT engine: a context, buffers that stay, and a CUDA graph of its run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from models.sessions import GraphError

Shape: TypeAlias = tuple[int, ...]


class EngineBucket:
    """A profile of fixed shapes, ready to run."""

    def __init__(
        self,
        library: Any,
        engine: Any,
        profile: int,
        shapes: Mapping[str, Shape],
        outputs: Sequence[str],
        *,
        device: torch.device,
        scratch: Tensor,
        fills: Mapping[str, int],
    ) -> None:
        """Choose the profile, bind the buffers and record the run.

        Args:
            shapes: of the inputs, all axes.
            scratch: bytes on the device for activations, shared with other buckets.
            fills: input -> what pads it along other axes than the rows; absent: 0.

        Raises:
            GraphError: TensorRT refuses a step of it.
            torch.OutOfMemoryError: the buffers do not fit.
        """
        self._fills = fills
        strategy = library.ExecutionContextAllocationStrategy.USER_MANAGED
        self._context = engine.create_execution_context(strategy)
        if self._context is None:
            raise GraphError("TensorRT made no execution context")
        self._outputs = list(outputs)
        with stream_of(device) as stream:
            _check(
                self._context.set_optimization_profile_async(profile, stream.handle), "the profile"
            )
            for name, shape in shapes.items():
                _check(self._context.set_input_shape(name, shape), f"the shape {shape} of {name}")
            if missing := self._context.infer_shapes():
                raise GraphError(f"TensorRT does not know the shapes of {', '.join(missing)}")
            if scratch.numel():
                self._context.set_device_memory(scratch.data_ptr(), scratch.numel())
            types = {
                library.DataType.FLOAT: torch.float32,
                library.DataType.INT64: torch.int64,
                library.DataType.BOOL: torch.bool,
            }
            # Written to inside and outside of inference mode.
            with torch.inference_mode(False):
                self._buffers = {
                    name: torch.zeros(
                        tuple(self._context.get_tensor_shape(name)),
                        dtype=types[engine.get_tensor_dtype(name)],
                        device=device,
                    )
                    for name in (*shapes, *outputs)
                }
            for name, buffer in self._buffers.items():
                _check(
                    self._context.set_tensor_address(name, buffer.data_ptr()), f"a buffer of {name}"
                )
            self._replay = stream.record(self._execute)

    def _execute(self, handle: int) -> None:
        _check(self._context.execute_async_v3(handle), "a run")

    def run(self, inputs: Mapping[str, Tensor], outputs: Sequence[Tensor]) -> None:
        """Run rows (at most the bucket's) of `inputs` into `outputs`, in the engine's order.

        Inputs and outputs may be shorter than the buffers along any axis.

        Raises:
            GraphError: an input is larger than its buffer, or the run failed.
        """
        for name, tensor in inputs.items():
            buffer = self._buffers[name]
            if tensor.ndim != buffer.ndim or any(
                size > most for size, most in zip(tensor.shape, buffer.shape, strict=True)
            ):
                raise GraphError(
                    f"{name} has shape {tuple(tensor.shape)}, the engine takes up to "
                    f"{tuple(buffer.shape)}"
                )
            if tensor.shape[1:] != buffer.shape[1:]:
                buffer.fill_(self._fills.get(name, 0))
            buffer[_corner(tensor)].copy_(tensor)
        self._replay()
        for name, output in zip(self._outputs, outputs, strict=True):
            output.copy_(self._buffers[name][_corner(output)])


class _Stream:
    """A CUDA stream to set a context up on, and to record its run on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.handle: int = self._stream.cuda_stream

    def __enter__(self) -> "_Stream":
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return self

    def __exit__(self, *_: object) -> None:
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def record(self, run: Callable[[int], None]) -> Callable[[], None]:
        """What repeats `run` on the current stream."""
        torch.cuda.current_stream(self._device).synchronize()  # the buffers are zeroed there
        run(self.handle)  # a capture must not be the first run: that one still allocates
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Another thread may serve another model meanwhile; what it allocates is its own affair.
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            run(self.handle)
        return graph.replay


class _NoStream:
    """The same without CUDA, where a double of TensorRT runs: each repetition is a call."""

    handle = 0

    def __enter__(self) -> "_NoStream":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def record(self, run: Callable[[int], None]) -> Callable[[], None]:
        """What repeats `run`."""
        return lambda: run(self.handle)


def stream_of(device: torch.device) -> _Stream | _NoStream:
    """A stream of that device."""
    return _Stream(device) if device.type == "cuda" else _NoStream()


def _corner(tensor: Tensor) -> tuple[slice, ...]:
    return tuple(slice(0, size) for size in tensor.shape)


def _check(accepted: bool, what: str) -> None:
    if not accepted:
        raise GraphError(f"TensorRT refused {what}: see its log")
