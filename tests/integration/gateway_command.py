"""`rpiae gateway` as a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

_STOP_DEADLINE_S = 40


class GatewayCommand:
    """Started on a free port with options and variables; `url` is what it says it listens on."""

    def __init__(
        self, *options: str, environment: dict[str, str], python: str = sys.executable
    ) -> None:
        self.process = subprocess.Popen(
            [python, "-m", "service.cli", "gateway", "--port", "0", *options],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def children(self) -> list[int]:
        """Process ids of those that answer."""
        pid = self.process.pid
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in listed]

    def stop(self) -> str:
        """Ask it to end; what else it wrote on stdout."""
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=_STOP_DEADLINE_S)
        assert self.process.returncode == 0
        return output

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
