"""Work for a client that may go away, and its end."""

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, TypeVar

import anyio
from fastapi import Request
from starlette.requests import ClientDisconnect

ResultT = TypeVar("ResultT")


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The work's result; the work is cancelled as soon as the client is gone.

    Only for use after the body has been read: what arrives next can then only be the disconnect.

    Raises:
        ClientDisconnect: the client closed the connection first.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        await cancel_tasks((working, watching))


async def cancel_tasks(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel and wait, so that nothing of the request outlives it."""
    for task in tasks:
        task.cancel()
    with anyio.CancelScope(shield=True):
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
