"""Joining, leaving, giving way and being late, counted in steps of the engine."""

import pytest
import torch
from torch import Tensor

from models.context import Context
from service.backends.base import Limits
from service.backends.fake_backend import FakeBackend
from service.engine.calibration import Calibration
from service.engine.deadlines import hopeless
from service.engine.engine import Engine
from service.engine.scheduler import DenoiseJob
from service.engine.work import DecodeWork, Failed, Finished, PictureWork, Stepped, Tick
from service.errors import DeadlineExceeded

LIMITS = Limits(image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=8, max_images=4)


class ManualClock:
    """Unix time that the test moves."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def picture(name: str, **options: object) -> PictureWork:
    fields: dict[str, object] = {"prompt": name, "seed": 1, "num_steps": 10, "guidance_scale": 2.0}
    return PictureWork(id=name, **(fields | options))  # type: ignore[arg-type]


def stepped(tick: Tick) -> set[str]:
    return {event.job_id for event in tick.events if isinstance(event, Stepped)}


def failures(tick: Tick) -> dict[str, Exception]:
    return {event.job_id: event.error for event in tick.events if isinstance(event, Failed)}


def new_engine(now: ManualClock | None = None, *, step_s: float = 0.0) -> Engine:
    """An engine for which no real time passes, with steps that are said to take `step_s`."""
    calibration = Calibration(max_rows=8, max_images=4, step_s=((8, step_s),) if step_s else ())
    # Whatever is timed, between two readings, took `step_s`.
    readings = iter(range(10**9))
    return Engine(
        FakeBackend(LIMITS),
        shift=1.0,
        calibration=calibration,
        clock=lambda: next(readings) * step_s,
        now=now or ManualClock(),
    )


def test_who_arrives_while_a_slot_is_free_makes_the_next_step() -> None:
    engine = new_engine()
    for index in range(4):
        engine.add(picture(f"job-{index}"))
        tick = engine.tick()
        assert f"job-{index}" in stepped(tick)
        assert tick.step_rows == 2 * (index + 1)


def test_an_edit_is_encoded_and_steps_in_the_same_tick() -> None:
    engine = new_engine()
    engine.add(picture("running"))
    engine.tick()
    engine.add(picture("edit", source=torch.zeros(3, 16, 16, dtype=torch.uint8)))
    assert stepped(engine.tick()) == {"running", "edit"}


def test_who_waits_for_rows_steps_as_soon_as_they_are_free() -> None:
    engine = new_engine()
    for index in range(4):
        engine.add(picture(f"job-{index}", num_steps=3 + index))
    engine.add(picture("waiting"))
    ticks = [stepped(engine.tick()) for _ in range(4)]
    assert ["waiting" in names for names in ticks] == [False, False, False, True]


def test_cancelling_frees_the_rows_for_the_next_step() -> None:
    engine = new_engine()
    for index in range(4):
        engine.add(picture(f"job-{index}"))
    engine.add(picture("waiting"))
    assert "waiting" not in stepped(engine.tick())
    engine.drop("job-2")
    tick = engine.tick()
    assert stepped(tick) == {"job-0", "job-1", "job-3", "waiting"}
    assert tick.step_rows == 8


def test_batch_jobs_give_way_and_go_on_where_they_were() -> None:
    engine = new_engine()
    alone = new_engine()
    alone.add(picture("batch-0", num_steps=6, urgency=1))
    expected = finished(alone)["batch-0"]
    for index in range(4):
        engine.add(picture(f"batch-{index}", num_steps=6, urgency=1))
    engine.tick()
    for index in range(4):
        engine.add(picture(f"urgent-{index}", num_steps=4))
    names = [stepped(engine.tick()) for _ in range(4)]
    assert all(sum(name.startswith("urgent") for name in each) == 3 for each in names)
    assert all(sum(name.startswith("batch") for name in each) == 1 for each in names)
    pictures = finished(engine)
    assert len(pictures) == 5  # three urgent ones had ended before
    assert torch.equal(pictures["batch-0"], expected)


def finished(engine: Engine) -> dict[str, Tensor]:
    done = {}
    while engine.has_work:
        for event in engine.tick().events:
            assert not isinstance(event, Failed), event.error
            if isinstance(event, Finished):
                done[event.job_id] = event.tensors["images"]
    return done


def test_the_earliest_deadline_steps_first() -> None:
    now = ManualClock()
    engine = new_engine(now)
    for index in range(4):
        engine.add(picture(f"far-{index}", deadline_at=now.time + 500))
    engine.add(picture("near", deadline_at=now.time + 100))
    assert stepped(engine.tick()) == {"near", "far-0", "far-1", "far-2"}


def test_a_passed_deadline_ends_a_job_at_the_next_step() -> None:
    now = ManualClock()
    engine = new_engine(now)
    engine.add(picture("late", deadline_at=now.time + 5))
    engine.add(picture("neighbour"))
    engine.add(DecodeWork(id="decode", latents=torch.zeros(99, 4, 2, 2), deadline_at=now.time + 5))
    assert stepped(engine.tick()) == {"late", "neighbour"}
    now.time += 5
    assert failures(engine.tick()) == {}
    now.time += 0.001
    tick = engine.tick()
    assert stepped(tick) == {"neighbour"}
    errors = failures(tick)
    assert set(errors) == {"late", "decode"}
    assert all(isinstance(error, DeadlineExceeded) for error in errors.values())
    assert all(error.status == 504 for error in errors.values())  # type: ignore[attr-defined]


def test_a_job_without_hope_is_dropped_before_its_deadline() -> None:
    now = ManualClock()
    engine = new_engine(now, step_s=1.0)
    engine.add(picture("hopeless", num_steps=50, deadline_at=now.time + 20))
    engine.add(picture("tight", num_steps=50, deadline_at=now.time + 40))
    engine.add(picture("patient", num_steps=50))
    tick = engine.tick()
    assert stepped(tick) == {"tight", "patient"}
    (error,) = failures(tick).values()
    assert isinstance(error, DeadlineExceeded)
    assert "50 steps are left, which take about 50 s, and 20 s" in str(error)


@pytest.mark.parametrize(
    ("step", "step_s", "left_s", "given_up"),
    [
        (0, 1.0, 4.9, True),
        (0, 1.0, 5.1, False),  # twice the time that is left is not yet needed
        (6, 1.0, 1.9, True),
        (6, 1.0, 2.1, False),
        (0, 0.0, 0.1, False),  # nothing is measured
    ],
)
def test_hope_is_what_is_left_against_the_measured_pace(
    step: int, step_s: float, left_s: float, given_up: bool
) -> None:
    job = DenoiseJob(id="a", num_rows=2, num_steps=10, deadline_at=100.0, step=step)
    assert (hopeless(job, step_s, 100.0 - left_s) is not None) is given_up


def test_a_job_without_deadline_is_never_given_up() -> None:
    assert hopeless(DenoiseJob(id="a", num_rows=1, num_steps=10**6), 99.0, 0.0) is None


class Counted(FakeBackend):
    """Keeps the number of rows of each velocity call."""

    def __init__(self) -> None:
        super().__init__(LIMITS)
        self.rows: list[int] = []

    def velocity(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        self.rows.append(len(x))
        return super().velocity(x, t, context)


def test_guidance_rows_outside_their_interval_are_not_run() -> None:
    backend = Counted()
    engine = Engine(backend, shift=1.0)
    engine.add(picture("half", num_steps=10, guidance_interval=(0.35, 0.75)))
    engine.add(picture("never", num_steps=10, guidance_interval=(0.01, 0.05)))
    engine.add(picture("edit", num_steps=10, guidance_interval=(0.35, 0.75),
                       image_guidance_scale=1.5,
                       source=torch.zeros(3, 16, 16, dtype=torch.uint8)))  # fmt: skip
    ticks = []
    while engine.has_work:
        ticks.append(engine.tick())
    inside = [0.35 <= 1 - index / 10 <= 0.75 for index in range(10)]
    expected = [2 + 1 + 3 if guided else 3 for guided in inside]
    assert backend.rows == expected
    assert [tick.step_rows for tick in ticks] == expected
