"""The pieces of the serving benchmarks: arrivals, statistics, batching policies, plots, tables."""

import json
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import serving_efficiency, serving_mixed, serving_soak
from benchmarks.line_plot import Line, draw_lines
from benchmarks.readme import README, fill
from benchmarks.serving_load import (
    MIXED_TASKS,
    percentile,
    plan_requests,
    poisson_arrivals,
    read_plan,
    slope,
    write_plan,
)
from benchmarks.serving_processes import Cores
from benchmarks.serving_worker import (
    EarlyRequestLevelScheduler,
    RequestLevelScheduler,
    apply_policy,
)
from models.text import split_words
from service.engine.scheduler import DenoiseJob

SOURCE = 5
VOCABULARY = Path(__file__).parents[2] / "bundles" / "stickers" / "vocabulary.json"


def test_arrivals_are_a_poisson_process() -> None:
    """As many as the rate says, and gaps whose deviation is their mean."""
    times = poisson_arrivals(50, 200, random.Random(SOURCE))
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 200
    assert len(times) == pytest.approx(10_000, rel=0.03)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert float(np.mean(gaps > gaps.mean())) == pytest.approx(math.exp(-1), abs=0.02)


def test_a_plan_has_its_shares_and_survives_its_file(tmp_path: Path) -> None:
    source = random.Random(SOURCE)
    plan = plan_requests([0.1 * i for i in range(2000)], (10, 25), MIXED_TASKS, source, 7)
    for task, share in MIXED_TASKS.items():
        assert statistics.mean(one.task == task for one in plan) == pytest.approx(share, abs=0.03)
    assert {one.steps for one in plan} == {10, 25}
    assert [one.seed for one in plan[:3]] == [7, 8, 9]
    assert len({one.prompt for one in plan[:800]}) == 800
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan


def test_percentiles_are_values_that_occurred() -> None:
    values = list(range(100, 0, -1))
    assert [percentile(values, share) for share in (0.5, 0.99, 0.991, 1)] == [50, 99, 100, 100]
    assert percentile([3.0], 0.5) == 3.0
    for bad, share in (([], 0.5), ([1.0], 0.0), ([1.0], 1.1)):
        with pytest.raises(ValueError, match="a share in"):
            percentile(bad, share)


def test_a_slope_is_found_with_its_interval() -> None:
    seconds = np.arange(600.0)
    noise = np.random.default_rng(SOURCE).normal(size=(200, 600))
    found = [slope(list(seconds), list(3 + 0.01 * seconds + row)) for row in noise]
    inside = statistics.mean(abs(gradient - 0.01) <= error for gradient, error in found)
    assert 0.9 <= inside <= 0.99
    exact, error = slope([0, 1, 2, 3], [1, 3, 5, 7])
    assert (exact, error) == (pytest.approx(2), pytest.approx(0, abs=1e-6))
    with pytest.raises(ValueError, match="4 pairs"):
        slope([1, 2], [1, 2])


def test_the_interval_of_a_slope_knows_that_neighbours_resemble_each_other() -> None:
    """A drifting level without a slope: white noise's interval would be far too narrow."""
    source = np.random.default_rng(SOURCE)
    covered = []
    for _ in range(100):
        level, values = 0.0, []
        for step in source.normal(size=600):
            level = 0.9 * level + step
            values.append(level)
        gradient, error = slope(list(range(600)), values)
        covered.append(abs(gradient) <= error)
    assert statistics.mean(covered) >= 0.85


def run_scheduler(
    scheduler: RequestLevelScheduler[DenoiseJob], steps: list[int], late: dict[int, int]
) -> dict[str, int]:
    """The step after which each job is answered; `late`: steps of jobs by when they come."""
    for number, count in enumerate(steps):
        scheduler.add(DenoiseJob(id=str(number), num_rows=2, num_steps=count))
    answered: dict[str, int] = {}
    step = 0
    while not scheduler.is_empty:
        step += 1
        if step in late:
            scheduler.add(DenoiseJob(id=f"late-{step}", num_rows=2, num_steps=late[step]))
        batch = scheduler.next_batch()
        assert sum(job.num_rows for job in batch) <= scheduler.max_rows
        answered |= {job.id: step for job in scheduler.advance(batch)}
    return answered


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (RequestLevelScheduler, {"0": 5, "1": 5, "2": 8, "late-2": 8}),
        (EarlyRequestLevelScheduler, {"0": 2, "1": 5, "2": 8, "late-2": 6}),
    ],
)
def test_request_level_batches_run_to_completion(
    make: Callable[[int], RequestLevelScheduler[DenoiseJob]], expected: dict[str, int]
) -> None:
    """Two fit at a time; who comes meanwhile waits for the end of the batch."""
    assert run_scheduler(make(4), steps=[2, 5, 3], late={2: 1}) == expected


def test_an_unknown_policy() -> None:
    with pytest.raises(ValueError, match="unknown policy 'fifo'"):
        apply_policy("fifo")


def test_cores_are_all_used_and_none_twice() -> None:
    cores = Cores.split()
    assert len(cores.worker) == 1
    assert cores.others == cores.worker or not cores.others & cores.worker


def test_lines_are_drawn_in_their_panels() -> None:
    x = [0.0, 1.0, 2.0]
    flat, rising = Line(title="a", x=x, y=[5.0] * 3), Line(title="b", x=x, y=[0.0, 1.0, 2.0])
    blue = [np.all(np.asarray(draw_lines([line], "s")) == (22, 92, 168), axis=-1) for line in
            (flat, rising)]  # fmt: skip
    heights = [np.ptp(np.nonzero(pixels)[0]) for pixels in blue]
    assert heights[0] < 5 < 100 < heights[1]
    assert draw_lines([flat, rising], "s").height > 1.5 * draw_lines([flat], "s").height
    with pytest.raises(ValueError, match="at least one line"):
        draw_lines([], "s")


def test_prompts_are_in_the_models_words() -> None:
    vocabulary = json.loads(VOCABULARY.read_text(encoding="utf-8"))
    plan = plan_requests([0.0] * 800, (10,), {"generate": 1.0}, random.Random(SOURCE))
    words = {word for one in plan for word in split_words(one.prompt)}
    assert words <= set(vocabulary)


RESULTS: list[tuple[str, Path, Callable[[dict[str, Any]], str]]] = [
    ("serving-efficiency", serving_efficiency.RESULTS, serving_efficiency.markdown),
    *(
        (
            f"serving-mixed-{device}",
            serving_mixed.RESULTS / f"serving_mixed_{device}.json",
            lambda report: serving_mixed.markdown(
                report, f"results/serving_mixed_{report['device']}.png"
            ),
        )
        for device in serving_mixed.DEVICES
    ),
    (
        "serving-soak",
        serving_soak.RESULTS,
        lambda report: serving_soak.markdown(report, "results/serving_soak.png"),
    ),
]


@pytest.mark.parametrize(("section", "path", "markdown"), RESULTS, ids=[r[0] for r in RESULTS])
def test_the_readme_shows_what_was_measured(
    section: str, path: Path, markdown: Callable[[dict[str, Any]], str]
) -> None:
    text = README.read_text(encoding="utf-8")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert fill(text, section, markdown(report)) == text
