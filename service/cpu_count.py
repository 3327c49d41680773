"""How many CPUs this process may use: its affinity, and the quota of its container."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def cpu_count(cgroup: Path = _CGROUP) -> int:
    """At least 1; part of a CPU counts as one.

    `cgroup` is where the process sees its own control group: version 2, or 1 below it.
    """
    cpus = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """CPUs that the control group may use at a time; None where it is not limited."""
    try:
        limit, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            limit = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    if not limit.isdigit() or not period.isdigit():  # "max", and -1 in version 1
        return None
    return int(limit) / int(period)
