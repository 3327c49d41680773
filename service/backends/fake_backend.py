"""A backend without weights, for tests of everything around a model and for load tests.

Its pictures are flat colours that depend on the prompt and, for edits, on the source. It uses only
+, -, * and / on each row by itself, so that a result is the same to the bit in any batch.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models.bridge import Posterior
from models.context import Context
from models.text_context import TextContext
from service.backends.base import Call, Cost, Limits
from service.errors import BackendError, OutOfMemory

_NUM_COLOURS = 3  # the first channels of the latents hold the picture's colours
_POISONED, _FATAL = 1.0, 2.0  # what a row's values say
_INSTANT_S = 1e-5  # what a call is said to take where no time is emulated
_FATAL_STATUS = 139  # as a shell shows a segmentation fault


class FakeBackend:
    """Deterministic and instant, unless told otherwise.

    Args:
        limits: shapes of the model it stands in for; at least 3 latent channels.
        step_seconds: emulated duration of a velocity call by row count; sizes in between take the
            next larger entry's, larger ones the last one's.
        fail_calls: (call, k): the k-th call of "encode", "decode", "prefill" or "velocity",
            counted from 1, raises BackendError.
        poison: a prompt that holds this text breaks every velocity call its rows are in.
        fatal: a prompt that holds this text ends the process in its first velocity call, as a
            fault in native code does.
        memory_rows: more rows than this raise OutOfMemory.
    """

    name = "fake"

    def __init__(
        self,
        limits: Limits,
        *,
        step_seconds: Mapping[int, float] | None = None,
        fail_calls: frozenset[tuple[str, int]] = frozenset(),
        poison: str | None = None,
        fatal: str | None = None,
        memory_rows: int | None = None,
    ) -> None:
        if limits.latent_shape[0] < _NUM_COLOURS:
            raise ValueError(
                f"latent_shape must have >= {_NUM_COLOURS} channels, got {limits.latent_shape}"
            )
        self.limits = limits
        self.num_calls: Counter[str] = Counter()
        self._step_seconds = sorted((step_seconds or {}).items())
        self._fail_calls = fail_calls
        self._poison = poison
        self._fatal = fatal
        self._memory_rows = memory_rows

    def encode(self, images: Tensor) -> Posterior:
        """Colours averaged over each latent cell, as 2 * colour - 1; logvar is constant."""
        self._count("encode")
        cells = functional.avg_pool2d(images, self.limits.cell) * 2 - 1
        batch, _, height, width = cells.shape
        mean = images.new_zeros(batch, self.limits.latent_shape[0], height, width)
        mean[:, :_NUM_COLOURS] = cells
        return Posterior(mean, torch.full_like(mean, -4.0))

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse of `encode` for pictures of one colour in each cell."""
        self._count("decode")
        colours = latents[:, :_NUM_COLOURS] / 2 + 0.5
        high, wide = self.limits.cell
        return colours.repeat_interleave(high, dim=2).repeat_interleave(wide, dim=3)

    def prefill(
        self, prompts: Sequence[str], source_latents: Tensor | None, *, guide: bool = False
    ) -> TextContext:
        """Keys hold the row's target colours, values 1 for a poisoned row and 2 for a fatal one.

        The guide model is as good as the model itself.
        """
        self._count("prefill")
        colours = torch.tensor([_colours(prompt) for prompt in prompts])
        if source_latents is not None:
            colours = (colours + source_latents[:, :_NUM_COLOURS, 0, 0]) / 2
        harm = [self._harm(prompt) for prompt in prompts]
        shape = (len(prompts), 1, 1, 1, -1)
        return TextContext(
            keys=colours.view(shape),
            values=torch.tensor(harm).view(shape),
            mask=torch.ones(len(prompts), 1, dtype=torch.bool),
            source=colours.new_zeros(len(prompts), 1, 1),
        )

    def velocity(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        """Straight from x to the row's target: following it to t = 0 arrives there."""
        assert isinstance(context, TextContext)
        self._count("velocity")
        self._check_memory(len(x))
        harm = float(context.values.max())
        if harm == _FATAL:
            os._exit(_FATAL_STATUS)
        if harm == _POISONED:
            raise BackendError("a row of this batch is poisoned")
        if seconds := self._seconds(len(x)):  # to sleep for 0 s lets other threads run
            time.sleep(seconds)
        target = torch.zeros_like(x)
        target[:, :_NUM_COLOURS] = context.keys.view(len(x), _NUM_COLOURS, 1, 1)
        return (x - target) / t.view(-1, 1, 1, 1)

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Nothing to warm up."""

    def measure(self, call: Call, size: int) -> Cost:
        """From the table, without waiting: only velocity takes time."""
        if call != "velocity":
            return Cost(_INSTANT_S)
        self._check_memory(size)
        return Cost(max(self._seconds(size), _INSTANT_S))

    def memory_bytes(self) -> int:
        """It holds no memory worth counting."""
        return 0

    def free_bytes(self) -> int | None:
        """Unknown: what exceeds `memory_rows` fails when it is run."""
        return None

    def _count(self, call: str) -> None:
        self.num_calls[call] += 1
        if (call, self.num_calls[call]) in self._fail_calls:
            raise BackendError(f"{call} call {self.num_calls[call]} fails as configured")

    def _harm(self, prompt: str) -> float:
        if self._fatal is not None and self._fatal in prompt:
            return _FATAL
        return _POISONED if self._poison is not None and self._poison in prompt else 0.0

    def _check_memory(self, num_rows: int) -> None:
        if self._memory_rows is not None and num_rows > self._memory_rows:
            raise OutOfMemory(f"{num_rows} rows exceed the emulated {self._memory_rows}")

    def _seconds(self, num_rows: int) -> float:
        if not self._step_seconds:
            return 0.0
        fitting = [seconds for size, seconds in self._step_seconds if size >= num_rows]
        return fitting[0] if fitting else self._step_seconds[-1][1]


def _colours(prompt: str) -> list[float]:
    """Three numbers in [-1, 1], multiples of 2/255, from the prompt's hash."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return [byte / 255 * 2 - 1 for byte in digest[:_NUM_COLOURS]]
