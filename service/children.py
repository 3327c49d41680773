"""Child processes that are kept alive: started again when they die, stopped together in the end.

They end with this process, however it ends.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from service.jobs.embedded import bound_to_parent
from service.log import get_logger
from service.settings import Settings, SettingsError

log = get_logger(__name__)

UNUSABLE = 2  # a child's exit status: wrong settings or files, which no restart mends
_MAX_BACKOFF_S = 10.0
_STABLE_S = 30.0  # who lived this long and dies is started again at once
_KILL_AFTER_S = 5.0  # beyond a drain's limit


@dataclass
class Child:
    """One process to keep alive. `arguments` of the `rpiae` command, asked anew for each start.

    environment: variables beside ours.
    """

    name: str
    arguments: Callable[[], Sequence[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None


class Children:
    """Keeps children alive until a signal comes, and then stops them in order.

    Attributes:
        stopping: set by SIGTERM or SIGINT, or by the caller.
    """

    def __init__(self, settings: Settings) -> None:
        self.stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._drain_timeout_s = settings.drain_timeout_s

    def stop_on_signals(self) -> None:
        """Of this process; a second one ends the children at once."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    async def keep(self, child: Child) -> None:
        """Run a child again and again, until we stop.

        Raises:
            SettingsError: it says that it cannot run with these settings.
        """
        backoff_s = 0.0
        while not self.stopping.is_set():
            started = time.monotonic()
            status = await self._run_once(child)
            if self.stopping.is_set():
                return
            if status == UNUSABLE:
                raise SettingsError(f"{child.name} cannot run with these settings, see above")
            lived_s = time.monotonic() - started
            backoff_s = 0.0 if lived_s > _STABLE_S else min(_MAX_BACKOFF_S, 2 * backoff_s + 0.1)
            log.warning("restarting", child=child.name, status=status, backoff_s=backoff_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), backoff_s)

    async def stop(self, children: Sequence[Child]) -> None:
        """Ask children to end, wait for their drain, then insist."""
        alive = [
            child.process
            for child in children
            if child.process is not None and child.process.returncode is None
        ]
        for process in alive:
            with suppress(ProcessLookupError):
                process.terminate()
        waits = [asyncio.create_task(process.wait()) for process in alive]
        if not waits:
            return
        hurry = asyncio.create_task(self._hurry.wait())
        everyone = asyncio.gather(*waits)
        await asyncio.wait(
            (hurry, everyone),
            timeout=self._drain_timeout_s + _KILL_AFTER_S,
            return_when=asyncio.FIRST_COMPLETED,
        )
        for process in alive:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
        await everyone
        hurry.cancel()

    def _on_signal(self) -> None:
        if self.stopping.is_set():
            self._hurry.set()
        self.stopping.set()

    async def _run_once(self, child: Child) -> int:
        """Exit status of one life."""
        command = [sys.executable, "-m", "service.cli", *child.arguments()]
        child.process = await asyncio.create_subprocess_exec(
            *bound_to_parent(command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            env={**os.environ, **child.environment},
            # A Ctrl-C in the terminal is for us: children are stopped in their order.
            start_new_session=True,
        )
        if self.stopping.is_set():
            child.process.terminate()
        return await child.process.wait()


def on_hangup(call: Callable[[], None]) -> None:
    """Call that in the running loop at each SIGHUP, unless the process has a terminal.

    There SIGHUP means that the terminal was closed, and ends the process as ever.
    """
    if not os.isatty(0):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, call)
