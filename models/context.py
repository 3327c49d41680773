"""What conditions a denoising request and stays the same over its steps."""

from collections.abc import Sequence
from typing import Any, Protocol, Self, TypeVar

from torch import Tensor


class Context(Protocol):
    """One row per model row. Each denoiser has its own: `TextContext`, `ClassContext`."""

    @property
    def num_rows(self) -> int:
        """R."""
        ...

    @property
    def num_bytes(self) -> int:
        """Memory that its tensors take."""
        ...

    def select(self, rows: Tensor | Sequence[int]) -> Self:
        """The context of some rows, in that order."""
        ...

    @classmethod
    def cat(cls, contexts: Sequence[Any]) -> Self:
        """Rows of several contexts of this class, one after another."""
        ...


C = TypeVar("C", bound=Context)


def cat_contexts(contexts: Sequence[C]) -> C:
    """Rows of several contexts of one denoiser, one after another; at least one context."""
    return type(contexts[0]).cat(contexts)
