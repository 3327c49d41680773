"""Finding the item that breaks a batch: a call that raises is repeated in halves."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def isolate(
    items: Sequence[T],
    call: Callable[[Sequence[T]], Sequence[R]],
    on_fault: Callable[[Sequence[T], Exception], None],
) -> list[R | Exception]:
    """Result of each item, or the error of an item that fails alone.

    `call` gives one result per item and has no effect when it raises. `on_fault` hears of each
    batch of two or more that failed; a fault that does not come back costs no item.
    """
    try:
        return list(call(items))
    except Exception as error:  # the per-job boundary: whatever it is, it costs one job
        if len(items) == 1:
            return [error]
        on_fault(items, error)
    middle = len(items) // 2
    return [
        outcome
        for half in (items[:middle], items[middle:])
        for outcome in isolate(half, call, on_fault)
    ]
