"""How many jobs a worker asks for, and what it says of those that it has."""

import pytest

from service.engine.work import DecodeWork, PictureWork, Work
from service.jobs.job import DecodeParams, Delivery, GenerateParams, Job, Priority
from service.running import Room, RunningJob, RunningJobs


def held(
    jobs: RunningJobs, name: str, *, rows: int = 2, priority: Priority = "interactive"
) -> RunningJob:
    """A picture of so many rows that is held from now on."""
    params = GenerateParams(prompt="a", seed=1, steps=10, guidance_scale=2.0)
    job = Job(id=name, task="generate", model="m", params=params, created_at=0.0,
              priority=priority, row_steps=100)  # fmt: skip
    running = jobs.add(Delivery(job, "0-1", None, 1))
    jobs.prepared(running, picture(name, rows))
    return running


def picture(name: str, rows: int) -> Work:
    return PictureWork(
        id=name, prompt="a", seed=1, num_steps=10, guidance_scale=1.0 if rows == 1 else 2.0
    )


@pytest.mark.parametrize(
    ("max_rows", "num_held", "credit", "places"),
    [
        (64, 0, 8, 64), (64, 26, 6, 12), (64, 31, 1, 2), (64, 32, 0, 0), (3, 0, 1, 3),
        (3, 1, 0, 1), (8, 3, 1, 2), (2, 3, 0, 0),
    ],
)  # fmt: skip
def test_as_many_as_can_step_and_an_eighth_at_once(
    max_rows: int, num_held: int, credit: int, places: int
) -> None:
    jobs = RunningJobs(100)
    for index in range(num_held):
        held(jobs, str(index))
    assert jobs.room(max_rows) == Room(credit, credit, places)


def test_interactive_jobs_are_taken_as_if_there_were_no_batch_jobs() -> None:
    jobs = RunningJobs(100)
    for index in range(8):
        held(jobs, str(index), priority="batch")
    assert jobs.room(16) == Room(credit=0, urgent_credit=2, places=0)
    for index in range(8):
        held(jobs, f"urgent-{index}")
    assert jobs.room(16) == Room(0, 0, 0)


def test_the_next_job_is_fetched_while_one_makes_its_last_steps() -> None:
    jobs = RunningJobs(100)
    running = [held(jobs, str(index)) for index in range(2)]
    running[0].steps = (7, 10)
    assert jobs.room(4).credit == 0
    running[0].steps = (8, 10)
    assert jobs.room(4).credit == 1
    assert jobs.held_rows == 4


def test_nothing_is_taken_while_results_pile_up() -> None:
    jobs = RunningJobs(2)
    for index in range(2):
        held(jobs, str(index)).held_rows = 0
    assert jobs.room(64) == Room(0, 0, 0)


def test_a_job_holds_the_most_rows_until_it_is_read() -> None:
    jobs = RunningJobs(2)
    params = GenerateParams(prompt="a", seed=1, steps=10, guidance_scale=1.0)
    job = Job(id="a", task="generate", model="m", params=params, created_at=0.0)
    running = jobs.add(Delivery(job, "0-1", None, 1))
    assert jobs.held_rows == 3
    jobs.prepared(running, picture("a", 1))
    assert jobs.held_rows == 1


def test_what_is_left_shrinks_with_the_steps() -> None:
    jobs = RunningJobs(2)
    running = held(jobs, "a")
    held(jobs, "b")
    assert jobs.row_steps_left == 200
    running.steps = (4, 10)
    assert jobs.row_steps_left == 160
    running.held_rows = 0
    assert jobs.row_steps_left == 100


def test_a_picture_has_begun_with_its_first_step_and_other_jobs_at_once() -> None:
    jobs = RunningJobs(2)
    running = held(jobs, "a")
    assert not running.begun
    running.steps = (1, 10)
    assert running.begun
    job = Job(id="d", task="decode", model="m", params=DecodeParams(output_format="png"),
              created_at=0.0)  # fmt: skip
    decode = jobs.add(Delivery(job, "0-2", b"", 1))
    assert not decode.begun
    decode.work = DecodeWork(id="d", latents=None)  # type: ignore[arg-type]
    assert decode.begun


def test_progress_is_told_once() -> None:
    jobs = RunningJobs(2)
    running = held(jobs, "a")
    running.steps, running.moved = (1, 10), True
    assert jobs.pop_progress() == {"a": (1, 10)}
    assert jobs.pop_progress() == {}
