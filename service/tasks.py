"""Ending asyncio tasks for certain."""

import asyncio
from collections.abc import Iterable
from typing import Any

_AGAIN_S = 0.1


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they are gone; how they ended is of no interest.

    One cancellation is not enough: Python 3.11's `asyncio.wait_for`, through which redis-py writes
    to its sockets, drops one that arrives together with the result (python/cpython#86296).
    """
    everyone = list(tasks)
    pending = set(everyone)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_AGAIN_S)
    for task in everyone:
        if not task.cancelled():
            task.exception()  # or asyncio reports it as never retrieved
