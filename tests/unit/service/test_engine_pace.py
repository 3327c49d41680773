"""What runs beside the steps: never longer than a step where it can be cut, and never starved."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models.bridge import Posterior
from models.context import Context
from service.backends.base import Limits
from service.backends.fake_backend import FakeBackend
from service.engine.calibration import Calibration
from service.engine.engine import Engine
from service.engine.pace import Pace, SpareTime
from service.engine.work import DecodeWork, EncodeWork, Finished, PictureWork, Tick

LIMITS = Limits(image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=16, max_images=8)
STEP_S, PREFILL_S, ENCODE_S, DECODE_S = 0.040, 0.004, 0.011, 0.009


class TimedBackend(FakeBackend):
    """Moves a clock by hand: a step takes STEP_S, other calls a time for each of their pieces."""

    def __init__(self) -> None:
        super().__init__(LIMITS)
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def encode(self, images: Tensor) -> Posterior:
        self.now += ENCODE_S * len(images)
        return super().encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        self.now += DECODE_S * len(latents)
        return super().decode(latents)

    def prefill(
        self, prompts: Sequence[str], source_latents: Tensor | None, *, guide: bool = False
    ) -> Context:
        self.now += PREFILL_S * len(prompts)
        return super().prefill(prompts, source_latents, guide=guide)

    def velocity(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        self.now += STEP_S
        return super().velocity(x, t, context)


CALIBRATION = Calibration(
    max_rows=16,
    max_images=8,
    step_s=((1, STEP_S), (16, STEP_S)),
    prefill_s=PREFILL_S,
    encode_s=ENCODE_S,
    decode_s=DECODE_S,
)


def engine_on(backend: TimedBackend) -> Engine:
    return Engine(backend, shift=1.0, calibration=CALIBRATION, clock=backend.clock)


def picture(name: str, **options: object) -> PictureWork:
    fields: dict[str, object] = {"prompt": name, "seed": 1, "num_steps": 40, "guidance_scale": 1.0}
    return PictureWork(id=name, **(fields | options))  # type: ignore[arg-type]


def beside(tick: Tick) -> float:
    return sum(seconds for stage, seconds in tick.stage_seconds if stage != "denoise")


def test_other_work_takes_no_longer_than_a_step() -> None:
    backend = TimedBackend()
    engine = engine_on(backend)
    engine.add(picture("running"))
    engine.tick()
    engine.add(EncodeWork(id="e", images=torch.zeros(30, 3, 16, 16, dtype=torch.uint8)))
    engine.add(DecodeWork(id="d", latents=torch.zeros(30, 4, 2, 2)))
    for index in range(8):
        engine.add(picture(f"new-{index}", partial_images=3))
    ticks = [engine.tick() for _ in range(39)]
    assert all(tick.step_rows for tick in ticks)
    assert max(map(beside, ticks)) <= STEP_S + ENCODE_S  # one piece may be begun too late
    done = {e.job_id for tick in ticks for e in tick.events if isinstance(e, Finished)}
    assert {"e", "d", "running"} <= done


def test_what_is_longer_than_a_step_still_comes_piece_by_piece() -> None:
    backend = TimedBackend()
    calibration = Calibration(max_rows=16, max_images=8, step_s=((1, 0.001),), decode_s=DECODE_S,
                              encode_s=ENCODE_S, prefill_s=PREFILL_S)  # fmt: skip
    engine = Engine(backend, shift=1.0, calibration=calibration, clock=lambda: 0.0)
    engine.add(picture("running"))
    engine.tick()
    engine.add(EncodeWork(id="e", images=torch.zeros(6, 3, 16, 16, dtype=torch.uint8)))
    engine.add(DecodeWork(id="d", latents=torch.zeros(6, 4, 2, 2)))
    backend.num_calls.clear()
    for _ in range(4):
        engine.tick()
    assert backend.num_calls["velocity"] == 4
    assert backend.num_calls["encode"] + backend.num_calls["decode"] >= 4
    assert min(backend.num_calls["encode"], backend.num_calls["decode"]) >= 2


def test_with_nothing_to_hold_up_slices_are_as_large_as_they_may_be() -> None:
    backend = TimedBackend()
    engine = engine_on(backend)
    engine.add(DecodeWork(id="d", latents=torch.zeros(16, 4, 2, 2)))
    assert [len(engine.tick().stage_seconds), len(engine.tick().stage_seconds)] == [1, 1]
    assert not engine.has_work
    for index in range(8):
        engine.add(picture(f"new-{index}", num_steps=1))
    tick = engine.tick()
    assert tick.step_rows == 8
    assert [stage for stage, _ in tick.stage_seconds] == ["prefill", "denoise", "decode"]


def test_a_new_picture_steps_in_the_very_next_step() -> None:
    engine = engine_on(TimedBackend())
    engine.add(picture("running"))
    for index in range(5):
        assert engine.tick().step_rows == index + 1
        engine.add(picture(f"new-{index}"))


def test_pace_knows_sizes_in_between_and_follows_what_it_sees() -> None:
    pace = Pace(Calibration(max_rows=8, max_images=1, step_s=((2, 0.02), (8, 0.08))))
    assert [pace.step_s(rows) for rows in (1, 2, 5, 8, 16)] == pytest.approx(
        [0.02, 0.02, 0.05, 0.08, 0.16]
    )
    assert pace.row_steps_per_s == pytest.approx(100)
    for _ in range(60):
        pace.note_step(5, 0.2)
        pace.note_tick(8, 0.1)
        pace.note_tick(2, 99.0)  # says nothing of a full batch
    assert pace.step_s(5) == pytest.approx(0.2, rel=0.01)
    assert pace.row_steps_per_s == pytest.approx(80, rel=0.01)


def test_one_pause_of_the_machine_hardly_changes_the_pace() -> None:
    pace = Pace(Calibration(max_rows=8, max_images=1, step_s=((8, 0.08),)))
    pace.note_step(8, 60.0)
    assert pace.step_s(8) <= 0.1


def test_without_measurements_nothing_is_cut() -> None:
    spare = SpareTime(Pace(Calibration(max_rows=8, max_images=4)))
    spare.begin(0.0)
    assert spare.pieces("decode", 4) == 4
    spare.begin(None)
    assert spare.pieces("encode", 3) == 3
