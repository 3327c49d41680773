"""Where a number comes from: the source's revision, the machine, the versions."""

import os
import platform
import subprocess
from pathlib import Path

import torch

_SOURCE = Path(__file__).parent


def git_revision() -> str:
    """Commit of the source, with "-modified" if tracked code differs; "unknown" without git."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/*.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-modified" if changed else commit


def short_revision(revision: str) -> str:
    """A revision as tables show it: twelve digits, and whether the code was modified."""
    commit, dash, modified = revision.partition("-")
    return commit[:12] + dash + modified


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_SOURCE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def hardware() -> dict[str, str | int]:
    """The processor, its cores that this process may use, torch's threads, the first GPU."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, str | int] = {
        "processor": _processor(),
        "cores": usable or 1,
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions() -> dict[str, str]:
    """Of the interpreter and of what computes the numbers."""
    return {"python": platform.python_version(), "torch": torch.__version__}
