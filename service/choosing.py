"""Which of several runtimes serves a model: the fastest of those that load, measured here and now.

One after the other is loaded, measured and freed, so that no two are in memory together.
"""

import gc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from models.manifest import BundleError
from service.backends.base import Backend, Call
from service.log import get_logger

log = get_logger(__name__)

# A guided picture alone, and four side by side; without a denoiser a picture alone, and four.
_SIZES: Mapping[Call, tuple[int, ...]] = {"velocity": (2, 8), "decode": (1, 4)}
_LONG_S = 0.5  # a size that takes longer is the last one tried


@dataclass(frozen=True)
class Candidate:
    """A runtime that could serve. `load` raises BundleError, with what mends it, if it cannot."""

    name: str
    load: Callable[[], Backend]


@dataclass(frozen=True)
class Choice:
    """The loaded backend, and why others could not be used, by the runtime's name."""

    backend: Backend
    unusable: Mapping[str, str] = field(default_factory=dict)


def choose(candidates: Sequence[Candidate], call: Call) -> Choice:
    """Load the fastest candidate; a single one is not measured.

    Args:
        candidates: at least one, the likely winner last: that one is loaded only once.
        call: what is measured, "velocity" or "decode".

    Raises:
        BundleError: none can be used.
    """
    if len(candidates) == 1:
        return Choice(candidates[0].load())
    unusable: dict[str, str] = {}
    seconds: dict[str, dict[int, float]] = {}
    backend: Backend | None = None
    for candidate in candidates:
        backend = None
        free_memory()
        try:
            backend = candidate.load()
            seconds[candidate.name] = _measure(backend, call)
        except Exception as error:  # whatever it is, another runtime may do
            backend = None
            unusable[candidate.name] = str(error)
            unexpected = None if isinstance(error, BundleError) else error
            log.warning(
                "a runtime cannot be used",
                backend=candidate.name,
                reason=str(error),
                exc_info=unexpected,
            )
    if not seconds:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unusable.items())
        raise BundleError(f"no runtime can be used: {reasons}")
    name = fastest(seconds)
    if len(seconds) > 1:
        log.info("the fastest runtime is used", backend=name, call=call, seconds=seconds)
    if name != candidates[-1].name:
        backend = None
        free_memory()
        backend = next(c for c in candidates if c.name == name).load()
    assert backend is not None
    return Choice(backend, unusable)


def fastest(seconds: Mapping[str, Mapping[int, float]]) -> str:
    """Who needs least, in the geometric mean over the sizes that all were measured at.

    Args:
        seconds: by name, then by size; all have the first size.
    """
    shared = set.intersection(*(set(each) for each in seconds.values()))
    return min(seconds, key=lambda name: sum(math.log(max(seconds[name][n], 1e-9)) for n in shared))


def _measure(backend: Backend, call: Call) -> dict[int, float]:
    """Seconds by size."""
    sizes = _SIZES[call]
    backend.warm_up(sizes)
    seconds: dict[int, float] = {}
    for size in sizes:
        seconds[size] = backend.measure(call, size).seconds
        if seconds[size] > _LONG_S:
            break
    return seconds


def free_memory() -> None:
    """What was just dropped, also on the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
