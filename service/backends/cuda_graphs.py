"""CUDA graphs: a call is recorded once, and repeated by one launch instead of hundreds.

Not torch.compile's own ("reduce-overhead"): those copy every input in every call, keys and values
of the context too, and they are bound to the thread that recorded them, while a worker warms up on
one thread and computes on another.
"""

import torch
from torch import cuda

from service.backends.static_batches import Run

_WARM_UPS = 3  # libraries choose their kernels and take their workspaces, which a capture must not


class CudaGraphs:
    """A `Capture` whose graphs share one pool of memory: only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Memory of the pool is shared only by graphs that were recorded on the same stream.
        self._stream: cuda.Stream = cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        """Raises torch.OutOfMemoryError, or RuntimeError where the call cannot be recorded."""
        with cuda.device(self._device):
            self._stream.wait_stream(cuda.current_stream())
            with cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    run()
            cuda.current_stream().wait_stream(self._stream)
            graph = cuda.CUDAGraph()
            # Another thread may serve another model meanwhile; what it allocates is its own affair.
            with cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                outputs = run()

        def replay() -> tuple[torch.Tensor, ...]:
            graph.replay()
            return outputs

        return replay
