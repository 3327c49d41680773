"""The comparison with an earlier revision: which tree it measures, and what it says."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.before_after import FINDINGS, earlier_tree, markdown, probe
from benchmarks.idle_workers import measure_idle
from service.jobs.embedded import EmbeddedRedis

ROOT = Path(__file__).parents[3]


def test_an_earlier_tree_has_its_own_service_and_these_benchmarks(tmp_path: Path) -> None:
    revision = earlier_tree("HEAD", tmp_path)
    assert len(revision) == 40
    assert (tmp_path / "service" / "worker.py").is_file()
    mine, copy = (root / "benchmarks" / "before_after.py" for root in (ROOT, tmp_path))
    assert copy.read_bytes() == mine.read_bytes()
    assert not (tmp_path / "benchmarks" / "results").exists()
    with pytest.raises(SystemExit, match="revision no-such-one in its history"):
        earlier_tree("no-such-one", tmp_path)


def test_another_trees_service_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match=f"not from {tmp_path}"):
        probe(ROOT / "bundles" / "stickers")


def test_what_is_said_are_medians_and_their_range() -> None:
    names = [name for one in FINDINGS for name, _ in one.gains]
    found = {
        side: [dict.fromkeys(names, factor * value) for value in (1.0, 3.0, 2.0)]
        for side, factor in (("before", 100.0), ("after", 50.0))
    }
    text = markdown(
        {
            "before": "a" * 40,
            "revision": "b" * 40,
            "hardware": {"processor": "a processor", "cores": 2},
            "idle_s": 2.0,
            "found": found,
        }
    )
    assert f"| {names[0]} | 200.0 (100.0 to 300.0) | 100.0 (50.0 to 150.0) | 0.50 |" in text
    for one in FINDINGS:
        assert f"| {one.cost} | {one.seen} | {one.change} | " in text
    assert "`aaaaaaaaaaaa`" in text
    assert "3 rounds" in text


def test_a_job_costs_three_scripts_however_many_wait() -> None:
    with EmbeddedRedis() as redis:
        for workers in (2, 12):
            cost = asyncio.run(measure_idle(redis.url, workers, 0.3))
            assert 3 <= cost.scripts < 4, "put, take and finish, and a few looks of those who wait"
            assert cost.thread_us > 0
            assert cost.jobs_per_s > 0
