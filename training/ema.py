"""Exponential moving averages of weights."""

import copy
from collections.abc import Mapping

import torch
from torch import nn


class Ema:
    """Holds an averaged copy of a module; early steps average over what there is.

    After step n the decay is min(decay, (1 + n) / (10 + n)), so a short run is not dominated by
    its initial weights. With `bias_free` they have no part at all: after n updates the average is
    sum_i decay^(n - i) w_i / sum_i decay^(n - i) over the n weights w_i that were seen. Both follow
    from the step alone, so the copy is all that a checkpoint keeps.
    """

    def __init__(self, module: nn.Module, decay: float, *, bias_free: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.bias_free = bias_free
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Blend in the weights that the module has after `step` (0-based)."""
        if self.bias_free:
            share = (1 - self.decay) / (1 - self.decay ** (step + 1))
        else:
            share = 1 - min(self.decay, (1 + step) / (10 + step))
        pairs = zip(self.module.parameters(), module.parameters(), strict=True)
        trained = [pair for pair in pairs if pair[1].requires_grad]
        if trained:
            averaged, latest = (list(part) for part in zip(*trained, strict=True))
            torch._foreach_lerp_(averaged, latest, share)


class Averages:
    """Bias-free averages of a stage's modules, kept in checkpoints as `<name>_ema`."""

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        """`decay` 0: there are none."""
        self._pairs = {
            f"{name}_ema": (Ema(module, decay, bias_free=True), module)
            for name, module in modules.items()
            if decay
        }

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The averaged copies by name."""
        return {name: ema.module for name, (ema, _) in self._pairs.items()}

    def update(self, step: int) -> None:
        """Blend in the weights that the modules have after `step` (0-based)."""
        for ema, module in self._pairs.values():
            ema.update(module, step)


def weights_file(name: str, averaged: bool) -> str:
    """The file of a run's module in its checkpoint: the last weights, or their average."""
    return f"{name}_ema.safetensors" if averaged else f"{name}.safetensors"
