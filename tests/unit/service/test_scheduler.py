"""Who gets rows, in which order, and who waits."""

import pytest

from service.engine.scheduler import DenoiseJob, FairQueue, Scheduler


def job(name: str, rows: int = 2, steps: int = 3, **options: float | int | None) -> DenoiseJob:
    return DenoiseJob(id=name, num_rows=rows, num_steps=steps, **options)  # type: ignore[arg-type]


def ids(jobs: list[DenoiseJob]) -> list[str]:
    return [each.id for each in jobs]


def test_jobs_join_while_others_are_under_way() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(8)
    scheduler.add(job("a"))
    scheduler.admit()
    scheduler.advance(scheduler.next_batch())
    scheduler.add(job("b", rows=1))
    assert ids(scheduler.admit()) == ["b"]
    batch = scheduler.next_batch()
    assert sorted(ids(batch)) == ["a", "b"]
    assert {each.id: each.step for each in batch} == {"a": 1, "b": 0}


def test_rows_never_exceed_the_limit_and_are_given_again() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(5)
    for name in "abcd":
        scheduler.add(job(name, steps=2))
    assert ids(scheduler.admit()) == ["a", "b"]
    assert scheduler.active_rows == 4
    assert scheduler.advance(scheduler.next_batch()) == []
    assert ids(scheduler.advance(scheduler.next_batch())) == ["a", "b"]
    assert ids(scheduler.admit()) == ["c", "d"]


def test_urgency_then_deadline_then_arrival() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(16)
    scheduler.add(job("batch", urgency=1, deadline_at=1.0))
    scheduler.add(job("first"))
    scheduler.add(job("late", deadline_at=20.0))
    scheduler.add(job("soon", deadline_at=10.0))
    scheduler.add(job("second"))
    assert ids(scheduler.admit()) == ["soon", "late", "first", "second", "batch"]


def test_small_jobs_do_not_overtake_a_large_one() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(4)
    scheduler.add(job("small", rows=2, steps=1))
    scheduler.add(job("large", rows=3))
    scheduler.add(job("tiny", rows=1))
    assert ids(scheduler.admit()) == ["small"]
    assert scheduler.admit() == []
    scheduler.advance(scheduler.next_batch())
    assert ids(scheduler.admit()) == ["large", "tiny"]


def test_after_the_limit_sinks_jobs_take_turns() -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(8)
    for name in "abcd":
        scheduler.add(job(name, steps=9))
    scheduler.admit()
    scheduler.limit_rows(4)
    turns = []
    for _ in range(4):
        batch = scheduler.next_batch()
        turns.append(ids(batch))
        scheduler.advance(batch)
    assert turns == [["a", "b"], ["c", "d"], ["a", "b"], ["c", "d"]]
    assert scheduler.admit() == []


@pytest.mark.parametrize("active", [True, False])
def test_a_dropped_job_is_gone(active: bool) -> None:
    scheduler: Scheduler[DenoiseJob] = Scheduler(4)
    scheduler.add(job("a"))
    if active:
        scheduler.admit()
    scheduler.drop("a")
    scheduler.drop("unknown")
    assert scheduler.admit() == []
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
