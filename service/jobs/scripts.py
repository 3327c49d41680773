"""The queue's Lua scripts: one file each, all preceded by `shared.lua` and `waiting.lua`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service.jobs.connection import unavailable_as_service_error

_FOLDER = Path(__file__).parent
_NAMES = (
    "ahead", "announce", "cancel", "depth", "finish", "give_back", "open",
    "publish", "put", "renew", "requeue", "reserve", "take", "withdraw", "workers",
)  # fmt: skip


class Scripts:
    """Runs the scripts of one queue. Streams and groups that are missing are created on the way.

    They go missing when Redis restarts without its data, or fails over to a replica without them.
    """

    def __init__(self, redis: Redis, root: str) -> None:
        shared = _read("shared") + _read("waiting")
        self._root = root
        self._scripts = {name: redis.register_script(shared + _read(name)) for name in _NAMES}

    async def run(self, name: str, args: Iterable[str | bytes | int | float] = ()) -> Any:
        """Reply of a script.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        script = self._scripts[name]
        arguments = list(args)
        with unavailable_as_service_error():
            try:
                return await script(keys=[self._root], args=arguments)
            except ResponseError as error:
                # 6.2 wraps the message of a failed command, so it is not always at the start.
                if "NOGROUP" not in str(error):
                    raise
            await self._scripts["open"](keys=[self._root])
            return await script(keys=[self._root], args=arguments)


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
