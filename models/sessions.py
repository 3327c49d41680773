"""What runs one graph of an export, whatever the runtime."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor


class GraphError(RuntimeError):
    """A runtime could not run a graph."""


class Session(Protocol):
    """A loaded graph; called from one thread at a time."""

    @property
    def device(self) -> torch.device:
        """Where its outputs are."""
        ...

    def run(
        self, inputs: Mapping[str, Tensor], shapes: Sequence[Sequence[int]]
    ) -> tuple[Tensor, ...]:
        """The outputs, float32 on the session's device.

        Args:
            inputs: by name, float32, int64 or bool, from any device.
            shapes: of the outputs, in the graph's order.

        Raises:
            GraphError: inputs do not fit the graph, or it failed.
        """
        ...
