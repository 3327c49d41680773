"""Batch sizes that are measured at start: the rows that pay, and what memory holds."""

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from service.backends.base import Call, Cost, Limits
from service.backends.fake_backend import FakeBackend
from service.backends.torch_backend import TorchBackend
from service.engine.calibration import Calibration, calibrate
from service.engine.engine import Engine
from service.engine.work import Finished, PictureWork
from service.errors import BackendError, OutOfMemory


def limits(max_rows: int = 64, *, padded: bool = False) -> Limits:
    return Limits(
        image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=max_rows, max_images=8, padded=padded
    )


class Modelled(FakeBackend):
    """Costs by formula: seconds by rows, and bytes for each row, of which only so many are free."""

    def __init__(
        self, seconds: Mapping[int, float], *, padded: bool = False, free: int | None = None
    ) -> None:
        super().__init__(limits(padded=padded), step_seconds=seconds)
        self._free = free
        self.measured: list[int] = []

    def measure(self, call: Call, size: int) -> Cost:
        if call != "velocity":
            return super().measure(call, size)
        self.measured.append(size)
        if self._free is not None and 10 * size > self._free:
            raise OutOfMemory("")
        return Cost(super().measure(call, size).seconds, 10 * size)

    def free_bytes(self) -> int | None:
        return self._free


def test_rows_grow_for_as_long_as_they_pay() -> None:
    """A step of up to 16 rows costs the same; from there on time grows with the rows."""
    seconds = {16: 0.01, 32: 0.02, 64: 0.04}
    found = calibrate(Modelled(seconds))
    assert found.max_rows == 16
    assert found.step_s == ((1, 0.01), (2, 0.01), (4, 0.01), (8, 0.01), (16, 0.01), (32, 0.02),
                            (64, 0.04))  # fmt: skip
    assert found.buckets == ()


def test_one_noisy_measurement_does_not_end_the_search() -> None:
    found = calibrate(Modelled({1: 0.01, 2: 0.02, 64: 0.03}))
    assert found.max_rows == 64


def test_where_batches_do_not_pay_some_pictures_still_step_side_by_side() -> None:
    backend = Modelled({rows: 0.01 * rows for rows in (1, 2, 4, 8, 16, 32, 64)})
    assert calibrate(backend).max_rows == 8
    assert backend.measured == [1, 2, 4]


def test_a_number_that_is_given_is_not_replaced() -> None:
    found = calibrate(Modelled({64: 0.01}), max_rows=5)
    assert found.max_rows == 5
    assert found.step_s[-1] == (5, 0.01)


def test_rows_end_before_memory_does() -> None:
    backend = Modelled({64: 0.01}, free=250)
    assert calibrate(backend).max_rows == 16  # 32 rows would not fit, and are not tried
    assert backend.measured == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(("memory_rows", "max_rows"), [(1, 3), (3, 3), (9, 8), (40, 32)])
def test_running_out_of_memory_ends_the_search(memory_rows: int, max_rows: int) -> None:
    assert calibrate(FakeBackend(limits(), memory_rows=memory_rows)).max_rows == max_rows


@pytest.mark.parametrize(("free", "max_images"), [(None, 4), (250, 4), (31, 2), (5, 1)])
def test_images_of_one_call_are_few_where_more_do_not_pay(
    free: int | None, max_images: int
) -> None:
    class Linear(FakeBackend):
        def measure(self, call: Call, size: int) -> Cost:
            if free is not None and 10 * size > free:
                raise OutOfMemory("")
            return Cost(0.01 * size)

    assert calibrate(Linear(limits())).max_images == max_images


def test_sizes_to_fill_up_to_are_those_that_were_measured() -> None:
    found = calibrate(Modelled({16: 0.01, 32: 0.02, 64: 0.04}, padded=True))
    assert found.buckets == (1, 2, 4, 8, 16)
    assert [found.padded(count, 16) for count in (1, 3, 8, 9, 16)] == [1, 4, 8, 16, 16]
    assert found.padded(9, 12) == 9  # the limit has sunk since
    assert found.padded(17, 16) == 17


def test_padding_is_counted_and_thrown_away() -> None:
    backend = Modelled({64: 0.0}, padded=True)
    engine = Engine(backend, shift=1.0, calibration=calibrate(backend, max_rows=12))
    for index in range(3):
        engine.add(PictureWork(id=str(index), prompt="a", seed=1, num_steps=2, guidance_scale=2.0))
    ticks = [engine.tick(), engine.tick()]
    assert [(tick.step_rows, tick.padding_rows) for tick in ticks] == [(6, 2), (6, 2)]
    assert sum(isinstance(event, Finished) for event in ticks[-1].events) == 3


def test_the_fake_runtime_is_measured_without_waiting() -> None:
    started = time.perf_counter()
    found = calibrate(FakeBackend(limits(16), step_seconds={1: 30.0}))
    assert time.perf_counter() - started < 5
    assert found.max_rows == 16
    assert found.step_s[0] == (1, 30.0)


def test_slow_calls_are_not_measured_beyond_the_limit() -> None:
    class Slow(FakeBackend):
        def measure(self, call: Call, size: int) -> Cost:
            time.sleep(0.02)
            return Cost(0.02)

    found = calibrate(Slow(limits()), limit_s=0.01)
    assert [rows for rows, _ in found.step_s] == [1]
    assert found.max_rows == 8


def test_a_model_that_draws_nothing_has_no_steps() -> None:
    class NoDenoiser(FakeBackend):
        def measure(self, call: Call, size: int) -> Cost:
            if call in ("prefill", "velocity"):
                raise BackendError("no denoiser")
            return super().measure(call, size)

    found = calibrate(NoDenoiser(limits()))
    assert (found.max_rows, found.max_images, found.step_s) == (64, 8, ())


def test_without_measurements_the_limits_hold() -> None:
    assert Calibration.unmeasured(limits(5)) == Calibration(max_rows=5, max_images=8)


def test_a_real_model_is_measured(tiny_bundle: Path) -> None:
    backend = TorchBackend.load(tiny_bundle, threads=1)
    backend.warm_up((1,))
    found = calibrate(backend, limit_s=0.2)
    assert 8 <= found.max_rows <= backend.limits.max_rows
    assert 1 <= found.max_images <= backend.limits.max_images
    assert [rows for rows, _ in found.step_s][:3] == [1, 2, 4]
    assert all(seconds > 0 for _, seconds in found.step_s)
    assert min(found.prefill_s, found.encode_s, found.decode_s) > 0
    assert found.buckets == ()
    assert backend.free_bytes() is None
