"""Calls on inputs of the right shapes, for warming a backend up and for measuring it."""

import time
from collections.abc import Callable

import torch

from service.backends.base import Backend, Call

# Beyond these no measurement goes: a step would become too long to join or to leave.
MAX_ROWS = {"cpu": 64, "cuda": 512}
MAX_IMAGES = {"cpu": 8, "cuda": 64}
_BRIEF_S = 0.2  # a call that is shorter is measured again: its first run may have paid for more


def example(backend: Backend, call: Call, size: int) -> Callable[[], object]:
    """A call of `size` rows, or images of the model's own size."""
    latents = torch.zeros(size, *backend.limits.latent_shape)
    match call:
        case "encode":
            images = torch.zeros(size, 3, *backend.limits.image_size)
            return lambda: backend.encode(images)
        case "decode":
            return lambda: backend.decode(latents)
        case "prefill":
            return lambda: backend.prefill([""] * size, None)
        case "velocity":
            # Each picture holds its context, and the batch holds a copy of them all.
            context = backend.prefill([""] * size, None)
            gathered = context.select(range(size))
            return lambda: (backend.velocity(latents, torch.ones(size), gathered), context)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """What a call takes from its start to its end on the device."""
    seconds = _timed(run, device)
    return min(seconds, _timed(run, device)) if seconds < _BRIEF_S else seconds


def _timed(run: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
