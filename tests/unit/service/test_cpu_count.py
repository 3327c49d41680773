"""CPUs of a process: what the machine lets it use, and what its container is given."""

import os
from pathlib import Path

import pytest

from service.cpu_count import cpu_count

CPUS = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000", CPUS),
        ("50000 100000", 1),
        (f"{100000 * CPUS} 100000", CPUS),
        (f"{100000 * (CPUS + 9)} 100000", CPUS),
        ("", CPUS),
    ],
)
def test_version_2(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(limit + "\n", encoding="ascii")
    assert cpu_count(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", CPUS), ("100000", 1), ("10000", 1)])
def test_version_1(tmp_path: Path, quota: str, expected: int) -> None:
    folder = tmp_path / "cpu"
    folder.mkdir()
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n", encoding="ascii")
    (folder / "cpu.cfs_period_us").write_text("100000\n", encoding="ascii")
    assert cpu_count(tmp_path) == expected


def test_without_control_groups(tmp_path: Path) -> None:
    assert cpu_count(tmp_path) == CPUS
