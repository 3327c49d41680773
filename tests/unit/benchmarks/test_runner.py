"""`make bench`: which commands run, what one that fails does, and what the results say."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import before_after, job_queue, simulate
from benchmarks.__main__ import BENCHMARKS, ROOT, Benchmark, chosen, run_all
from benchmarks.readme import README, fill, paragraph
from benchmarks.simulation.report import (
    deviations,
    scale_markdown,
    validation_markdown,
)

RESULTS = ROOT / "benchmarks" / "results"
NOT_MEASURED = {"trace_example.json"}


def source_of(module: str) -> str:
    found = importlib.util.find_spec(f"benchmarks.{module}")
    assert found is not None, module
    assert found.origin is not None
    return Path(found.origin).read_text(encoding="utf-8")


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_every_option_is_one_of_its_command(benchmark: Benchmark) -> None:
    source = source_of(benchmark.module)
    options = {*(benchmark.short or ()), *benchmark.full}
    missing = {o for o in options if o.startswith("--") and f'"{o}"' not in source}
    assert missing == set()


def test_the_short_form_leaves_out_what_takes_long() -> None:
    short, full = ([one.name for one in chosen(None, full=full)] for full in (False, True))
    assert set(full) - set(short) == {"before_after", "serving_peers_tuning", "serving_soak"}
    assert full == [one.name for one in BENCHMARKS]
    assert len(set(full)) == len(full)


def test_names_are_chosen_in_their_order() -> None:
    found = chosen(["training", "job_queue"], full=False)
    assert [one.name for one in found] == ["training", "job_queue"]
    with pytest.raises(ValueError, match=r"unknown benchmark 'x', expected some of job_queue, "):
        chosen(["job_queue", "x"], full=False)
    (soak,) = chosen(["serving_soak"], full=False)
    with pytest.raises(ValueError, match="serving_soak has no short form: use --full"):
        soak.command(full=False)
    assert soak.command(full=True) == ["-m", "benchmarks.serving_soak"]


def test_one_that_fails_or_is_left_out_does_not_stop_the_others() -> None:
    benchmarks = [
        Benchmark(name="bad", module="serving", short=("--no-such-option",)),
        Benchmark(
            name="absent", module="serving", short=(), needs=ROOT / "no" / "such", how="make it"
        ),
        Benchmark(name="good", module="serving", short=("--help",)),
    ]
    outcomes = run_all(benchmarks, full=False)
    assert [(one.name, one.ending) for one in outcomes] == [
        ("bad", "failed (2)"),
        ("absent", "left out: no/such is missing, make it"),
        ("good", "ok"),
    ]


def test_the_command_refuses_unknown_names() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--only", "nothing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 2
    assert "unknown benchmark 'nothing'" in finished.stderr


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(RESULTS.glob("*.json")) if path.name not in NOT_MEASURED],
    ids=lambda path: path.stem,
)
def test_results_say_where_they_come_from(path: Path) -> None:
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["hardware"]["processor"]
    assert report["versions"]["python"]
    assert report["revision"]


SECTIONS: list[tuple[str, Path, Callable[[dict[str, Any]], str]]] = [
    ("job-queue", job_queue.RESULTS, job_queue.markdown),
    ("simulation-validation", simulate.VALIDATION, validation_markdown),
    (
        "simulation",
        simulate.SCALE,
        lambda report: scale_markdown(report, "results/simulation.png"),
    ),
    ("before-after", before_after.RESULTS, before_after.markdown),
]


@pytest.mark.parametrize(("section", "path", "markdown"), SECTIONS, ids=[s[0] for s in SECTIONS])
def test_the_readme_shows_what_was_measured(
    section: str, path: Path, markdown: Callable[[dict[str, Any]], str]
) -> None:
    text = README.read_text(encoding="utf-8")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert fill(text, section, markdown(report)) == text
    assert "`python -m benchmarks." in markdown(report)


def test_deviations_are_shares_of_the_real_percentiles() -> None:
    report = {
        "runs": [{"real": {"p50_s": 2.0, "p99_s": 4.0}, "simulated": {"p50_s": 2.2, "p99_s": 3.0}}]
    }
    assert deviations(report) == pytest.approx([0.1, -0.25])


def test_the_newest_redis_is_reckoned_with() -> None:
    report = {"costs": {"Redis 6.2.14": {"put": {}}, "Redis 7.0.15": {"take": {}}}}
    assert simulate.queue_costs(report) == ("Redis 7.0.15", {"take": {}})


def test_a_report_that_is_missing_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"none.json is missing: run python -m benchmarks.x first"):
        simulate.read_report(tmp_path / "none.json", "benchmarks.x")


def test_a_command_stays_in_one_line() -> None:
    text = paragraph(f"{'word ' * 19}`python -m benchmarks.x` and more")
    assert text.splitlines() == ["word " * 18 + "word", "`python -m benchmarks.x` and more"]
