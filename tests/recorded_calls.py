"""A double of a device's graphs, for machines that have no such device."""

import torch
from torch import Tensor

from service.backends.static_batches import Run, Tensors


class Recording:
    """Graphs that share their memory: each run overwrites what all of them gave before."""

    def __init__(self) -> None:
        self.num_captured = self.num_replays = 0
        self._pool: list[Tensor] = []

    def __call__(self, run: Run) -> Run:
        self.num_captured += 1
        outputs = tuple(output.clone() for output in run())
        self._pool += outputs

        def replay() -> Tensors:
            self.num_replays += 1
            fresh = run()
            for tensor in self._pool:
                tensor.fill_(torch.nan)
            for output, new in zip(outputs, fresh, strict=True):
                output.copy_(new)
            return outputs

        return replay
