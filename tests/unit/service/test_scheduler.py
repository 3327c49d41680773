"""Who gets rows, in which order, and who waits."""

import pytest

from service.engine.scheduler import DenoiseJob, FairQueue, Scheduler


def job(name: str, rows: int = 2, steps: int = 3, **options: float | int | None) -> DenoiseJob:
    return DenoiseJob(id=name, num_rows=rows, num_steps=steps, **options)  # type: ignore[arg-type]


def ids(jobs: list[DenoiseJob]) -> list[str]:
    return [each.id for each in jobs]


def step(scheduler: Scheduler[DenoiseJob]) -> list[str]:
    """Run one step; who was in it."""
    batch = scheduler.next_batch()
    assert sum(each.rows_now for each in batch) <= scheduler.max_rows
    scheduler.advance(batch)
    return ids(batch)


def test_jobs_join_while_others_are_under_way() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(8)
    scheduler.add(job("a"))
    assert step(scheduler) == ["a"]
    scheduler.add(job("b", rows=1))
    batch = scheduler.next_batch()
    assert {each.id: each.step for each in batch} == {"a": 1, "b": 0}


def test_rows_never_exceed_the_limit_and_are_given_again() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(5)
    for name in "abcd":
        scheduler.add(job(name, steps=2))
    assert [step(scheduler) for _ in range(5)] == [
        ["a", "b"], ["a", "b"], ["c", "d"], ["c", "d"], [],
    ]  # fmt: skip
    assert scheduler.is_empty


def test_urgency_then_deadline_then_arrival() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(16)
    scheduler.add(job("batch", urgency=1, deadline_at=1.0))
    scheduler.add(job("first"))
    scheduler.add(job("late", deadline_at=20.0))
    scheduler.add(job("soon", deadline_at=10.0))
    scheduler.add(job("second"))
    assert ids(scheduler.next_batch()) == ["soon", "late", "first", "second", "batch"]


def test_small_jobs_do_not_delay_a_large_one() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(4)
    scheduler.add(job("small", rows=2, steps=1))
    scheduler.add(job("large", rows=3))
    scheduler.add(job("late", rows=2, steps=9))
    assert step(scheduler) == ["small", "late"]  # what the large one cannot use is not wasted
    assert step(scheduler) == ["large"]


def test_a_job_pauses_with_its_state_for_one_that_is_more_urgent() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(4)
    scheduler.add(job("far", rows=3, steps=4, deadline_at=90.0))
    assert [step(scheduler), step(scheduler)] == [["far"], ["far"]]
    scheduler.add(job("near", rows=3, steps=2, deadline_at=10.0))
    turns = [step(scheduler) for _ in range(4)]
    assert turns == [["near"], ["near"], ["far"], ["far"]]


def test_after_the_limit_sinks_the_first_go_on_and_the_others_later() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(8)
    for name in "abcd":
        scheduler.add(job(name, steps=3))
    assert step(scheduler) == ["a", "b", "c", "d"]
    scheduler.limit_rows(4)
    turns = [step(scheduler) for _ in range(4)]
    assert turns == [["a", "b"], ["a", "b"], ["c", "d"], ["c", "d"]]
    assert scheduler.is_empty


class Unguided(DenoiseJob):
    """Has guidance in its first step only."""

    @property
    def rows_now(self) -> int:
        return self.num_rows if self.step == 0 else 1


def test_rows_that_a_step_does_not_need_go_to_others() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(4)
    for name in "abc":
        scheduler.add(Unguided(id=name, num_rows=2, num_steps=3))
    assert [step(scheduler) for _ in range(4)] == [
        ["a", "b"], ["a", "b", "c"], ["a", "b", "c"], ["c"],
    ]  # fmt: skip


@pytest.mark.parametrize("max_rows", [3, 4, 16, 17])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_batch_jobs_keep_their_share_while_both_classes_want_rows(max_rows: int, rows: int) -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(max_rows)
    for index in range(20):
        scheduler.add(job(f"batch-{index}", rows=rows, steps=1000, urgency=1))
        scheduler.add(job(f"urgent-{index}", rows=rows, steps=1000))
    counts = {"batch": 0, "urgent": 0}
    for _ in range(400):
        for name in step(scheduler):
            counts[name.split("-")[0]] += rows
    share = counts["batch"] / sum(counts.values())
    # Whole jobs alone can step: with few rows the share comes out a little larger.
    assert share >= 0.24
    assert share <= 0.25 + rows / max_rows * 0.25


def test_batch_jobs_have_all_that_is_left() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(6)
    scheduler.add(job("urgent", steps=9))
    for name in "abc":
        scheduler.add(job(name, steps=9, urgency=1))
    assert sorted(step(scheduler)) == ["a", "b", "urgent"]


def test_an_urgent_job_steps_at_once_though_batch_jobs_fill_the_rows() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(8)
    for name in "abcd":
        scheduler.add(job(name, steps=6, urgency=1))
    assert step(scheduler) == ["a", "b", "c", "d"]
    scheduler.add(job("urgent", steps=2))
    assert "urgent" in step(scheduler)
    assert "urgent" in step(scheduler)
    rest = [step(scheduler) for _ in range(9)]
    assert scheduler.is_empty
    assert sum(map(len, rest)) + 4 + 2 * 3 == 4 * 6  # no step was lost or made twice


def test_every_job_ends_whatever_comes_after_it() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(4)
    scheduler.add(job("old", rows=3, steps=5, urgency=1))
    for turn in range(60):
        scheduler.add(job(f"new-{turn}", rows=2, steps=1))
        step(scheduler)
    assert "old" not in [each.id for each in scheduler]


@pytest.mark.parametrize("begun", [True, False])
def test_a_dropped_job_is_gone(begun: bool) -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(4)
    scheduler.add(job("a"))
    if begun:
        step(scheduler)
    scheduler.drop("a")
    scheduler.drop("unknown")
    assert scheduler.next_batch() == []
    assert scheduler.is_empty


def test_impossible_sizes_are_refused_with_their_numbers() -> None:
    with pytest.raises(ValueError, match=r"max_rows.*3 rows.*got 2"):
        Scheduler(2)
    with pytest.raises(ValueError, match=r"num_rows.*got 4"):
        job("a", rows=4)
    with pytest.raises(ValueError, match=r"step must be in \[0, 3\), got 3"):
        job("a", step=3)


def test_items_are_taken_from_each_owner_in_turn() -> None:
    queue: FairQueue[str, int] = FairQueue()
    queue.put("many", range(4))
    queue.put("one", [10])
    queue.put("none", [])
    assert queue.take(3) == [("many", 0), ("one", 10), ("many", 1)]
    queue.put("late", [20])
    assert queue.take(2) == [("many", 2), ("late", 20)]
    queue.drop("many")
    queue.drop("many")
    assert queue.is_empty
    assert queue.take(1) == []
