"""A stage as the dry run sees it: modules on the meta device, and passes through them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from training.meta_cost import Cost, measure, storage_id

Pass = Callable[[int], None]
"""Forward and backward pass of so many samples."""


@dataclass(frozen=True)
class StageParts:
    """A stage's modules on the meta device, by name.

    passes: one after another, each with the share of the batch that goes through it.
    once: forward passes, with their number, before the first step. averaged: EMA of `trained`.
    """

    trained: Mapping[str, nn.Module]
    frozen: Mapping[str, nn.Module]
    passes: tuple[tuple[float, Pass], ...]
    once: tuple[int, Pass] | None = None
    averaged: bool = False

    def step_cost(self, batch_size: int, part_size: int) -> Cost:
        """FLOPs of a batch; activations of its parts of `part_size` samples, the largest."""
        flops, activations = 0.0, 0
        for share, run in self.passes:
            cost = self._measure(run, max(1, round(share * part_size)))
            flops += share * batch_size * cost.flops / max(1, round(share * part_size))
            activations = max(activations, cost.activation_bytes)
        return Cost(round(flops), activations)

    def once_flops(self) -> int:
        """FLOPs before the first step."""
        if self.once is None:
            return 0
        count, run = self.once
        return count * self._measure(run, 1).flops

    def _measure(self, run: Pass, num_samples: int) -> Cost:
        weights = {
            storage_id(tensor)
            for module in (*self.trained.values(), *self.frozen.values())
            for tensor in (*module.parameters(), *module.buffers())
        }
        return measure(lambda: run(num_samples), weights)
