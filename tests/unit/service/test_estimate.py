"""What jobs cost, and when they would be done."""

import uuid
from typing import Any

import pytest

from models.manifest import SAMPLERS, Manifest
from models.solvers import plan_sampling
from service.api.cost import num_evaluations, row_steps
from service.api.estimate import Pace, estimate_s
from service.engine.work import PictureWork
from service.jobs.job import (
    DecodeParams,
    EditParams,
    EncodeParams,
    GenerateParams,
    Job,
    Priority,
)
from service.jobs.standing import Ahead

NOTHING_AHEAD = Ahead(row_steps=0, num_waiting=0)


def manifest(**fields: Any) -> Manifest:
    defaults: dict[str, Any] = {
        "name": "tiny",
        "tasks": ["generate", "edit"],
        "image_size": (16, 16),
        "latent_shape": (4, 2, 2),
        "latents_mean": [0.0],
        "latents_std": [1.0],
        "timestep_shift": 2.5,
    }
    return Manifest(**(defaults | fields))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [2, 20])
@pytest.mark.parametrize("strength", [1.0, 0.6, 0.01])
def test_evaluations_are_those_of_the_sampler(sampler, steps, strength):
    params = EditParams(
        prompt="a",
        seed=0,
        steps=steps,
        sampler=sampler,
        guidance_scale=1,
        image_guidance_scale=1,
        strength=strength,
    )
    plan = plan_sampling(sampler, steps, 2.5, strength=strength)
    assert num_evaluations(params) == plan.num_evaluations
    assert row_steps(params, manifest()) == plan.num_evaluations


@pytest.mark.parametrize("autoguided", [False, True])
@pytest.mark.parametrize("guidance_scale", [1, 3])
@pytest.mark.parametrize("image_guidance_scale", [None, 1, 1.5])
def test_rows_are_those_of_the_engine(autoguided, guidance_scale, image_guidance_scale):
    fields = {"prompt": "a", "seed": 0, "steps": 10, "guidance_scale": guidance_scale}
    options: dict[str, Any] = {}
    if image_guidance_scale is None:
        params = GenerateParams(**fields)
    else:
        params = EditParams(**fields, image_guidance_scale=image_guidance_scale)
        options = {"image_guidance_scale": image_guidance_scale, "source": object()}
    work = PictureWork(
        id="1",
        prompt="a",
        seed=0,
        num_steps=10,
        guidance_scale=guidance_scale,
        autoguided=autoguided,
        **options,
    )
    guidance = "autoguidance" if autoguided else "classifier-free"
    assert row_steps(params, manifest(guidance=guidance)) == 10 * work.num_rows


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_costs_only_where_it_acts(sampler):
    low, high = 0.3, 0.8
    params = GenerateParams(
        prompt="a",
        seed=0,
        steps=20,
        sampler=sampler,
        guidance_scale=3,
        guidance_min_t=low,
        guidance_max_t=high,
    )
    times = plan_sampling(sampler, 20, 2.5).times
    guided = sum(low <= t <= high for t in times)
    assert 0 < guided < len(times)
    assert row_steps(params, manifest()) == len(times) + guided


def test_encode_and_decode_cost_one():
    for params in (EncodeParams(), DecodeParams(output_format="png")):
        assert row_steps(params, manifest()) == 1
        assert num_evaluations(params) == 1


def jobs(count: int, cost: int) -> list[Job]:
    params = GenerateParams(prompt="a", seed=0, steps=10, guidance_scale=3)
    return [
        Job(
            id=uuid.uuid4().hex,
            task="generate",
            model="tiny",
            params=params,
            created_at=0,
            row_steps=cost,
        )
        for _ in range(count)
    ]


def worker(**fields: Any) -> dict[str, Any]:
    """Eight rows that step in 0.1 s: 80 row_steps a second."""
    idle = {
        "max_rows": 8,
        "active_rows": 0,
        "row_steps_left": 0,
        "urgent_rows": 0,
        "urgent_row_steps_left": 0,
        "row_steps_per_s": 80.0,
        "step_seconds": 0.1,
    }
    return idle | fields


def pace_of(*workers: dict[str, Any], priority: Priority = "batch") -> Pace:
    pace = Pace.of(workers, priority)
    assert pace is not None
    return pace


def test_without_measured_rates_there_is_no_pace():
    assert Pace.of([], "batch") is None
    assert Pace.of([worker(), worker(row_steps_per_s=0.0)], "batch") is None
    assert Pace.of([worker(step_seconds=None)], "batch") is None
    assert Pace.of([{"model": "tiny"}], "interactive") is None


def test_an_idle_worker_takes_as_long_as_the_steps():
    assert estimate_s(pace_of(worker()), NOTHING_AHEAD, jobs(1, 20), 10) == pytest.approx(1.0)
    # Four pictures of two rows fit at once.
    assert estimate_s(pace_of(worker()), NOTHING_AHEAD, jobs(4, 20), 10) == pytest.approx(1.0)


def test_pictures_at_once_share_the_rate():
    """Alone a step takes 20 ms, of a full batch 100 ms."""
    quick = worker(step_seconds=0.02)
    assert estimate_s(pace_of(quick), NOTHING_AHEAD, jobs(1, 20), 10) == pytest.approx(0.25)
    assert estimate_s(pace_of(quick), NOTHING_AHEAD, jobs(4, 20), 10) == pytest.approx(1.0)


def test_pictures_beyond_the_rows_go_one_after_the_other():
    """Eight pictures of two rows are two full batches of four."""
    estimated = estimate_s(pace_of(worker()), NOTHING_AHEAD, jobs(8, 20), 10)
    assert 1.0 < estimated <= 2.0
    two = estimate_s(pace_of(worker(), worker()), NOTHING_AHEAD, jobs(8, 20), 10)
    assert two == pytest.approx(1.0)


def test_what_waits_is_done_at_the_joint_rate():
    busy = worker(active_rows=8, row_steps_left=0)
    ahead = Ahead(row_steps=800, num_waiting=40)
    one = estimate_s(pace_of(busy), ahead, jobs(1, 20), 10)
    assert one == pytest.approx(800 / 80 + 1.0)
    two = estimate_s(pace_of(busy, busy), ahead, jobs(1, 20), 10)
    assert two == pytest.approx(800 / 160 + 1.0)


def test_a_worker_with_room_for_one_is_waited_for():
    """Its only job has 30 steps left, two rows each."""
    busy = worker(max_rows=3, active_rows=2, row_steps_left=60, row_steps_per_s=20.0)
    assert estimate_s(pace_of(busy), NOTHING_AHEAD, jobs(1, 20), 10) == pytest.approx(3.0 + 1.0)


def test_with_many_running_the_first_ends_soon():
    """64 rows that began at even distances: one ends with every other step or so."""
    busy = worker(max_rows=64, active_rows=64, row_steps_left=32 * 10, row_steps_per_s=640.0)
    estimated = estimate_s(pace_of(busy), NOTHING_AHEAD, jobs(1, 20), 10)
    assert 1.0 < estimated < 1.1


def test_interactive_jobs_do_not_wait_for_batch_jobs():
    busy = worker(active_rows=8, row_steps_left=800, urgent_rows=2, urgent_row_steps_left=20)
    assert estimate_s(pace_of(busy), NOTHING_AHEAD, jobs(1, 20), 10) > 4
    urgent = pace_of(busy, priority="interactive")
    assert urgent.free_rows == 6
    assert estimate_s(urgent, NOTHING_AHEAD, jobs(1, 20), 10) == pytest.approx(1.0)


def test_an_old_announcement_frees_rows():
    busy = pace_of(worker(active_rows=8, row_steps_left=80))
    assert busy.later(0.5).row_steps_left == pytest.approx(40)
    assert busy.later(0.5).free_rows == 4
    assert busy.later(5).free_rows == 8
    assert estimate_s(busy.later(5), NOTHING_AHEAD, jobs(1, 20), 10) == pytest.approx(1.0)
