"""The engine: a result depends on nothing but its job, and a broken job breaks only itself."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.manifest import Sampler
from models.solvers import plan_sampling
from models.text_context import TextContext
from service.backends.base import Backend, Limits
from service.backends.fake_backend import FakeBackend
from service.engine.calibration import Calibration
from service.engine.engine import Engine
from service.engine.images import to_float, to_uint8
from service.engine.work import (
    DecodeWork,
    Denoised,
    EncodeWork,
    EngineEvent,
    Failed,
    Finished,
    PictureWork,
    Row,
    Stepped,
    Tick,
    Work,
)
from service.errors import BackendError, OutOfMemory

LIMITS = Limits(image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=16, max_images=4)
SHIFT = 1.5


def engine_on(backend: Backend, **options: Any) -> Engine:
    return Engine(backend, shift=SHIFT, **options)


def run(engine: Engine, arrivals: Iterable[Sequence[Work]] = ()) -> list[Tick]:
    """Tick until nothing is left, adding one group of jobs before each of the first ticks."""
    ticks: list[Tick] = []
    waiting = list(arrivals)
    while waiting or engine.has_work:
        for work in waiting.pop(0) if waiting else ():
            engine.add(work)
        ticks.append(engine.tick())
        assert len(ticks) < 1000, "the engine does not come to an end"
    return ticks


def events(ticks: Iterable[Tick]) -> list[EngineEvent]:
    return [event for tick in ticks for event in tick.events]


def results(ticks: Iterable[Tick]) -> dict[str, dict[str, Tensor]]:
    return {event.job_id: event.tensors for event in events(ticks) if isinstance(event, Finished)}


def failures(ticks: Iterable[Tick]) -> dict[str, Exception]:
    return {event.job_id: event.error for event in events(ticks) if isinstance(event, Failed)}


def picture(name: str, **options: object) -> PictureWork:
    fields: dict[str, object] = {
        "prompt": f"a picture of {name}",
        "seed": len(name),
        "num_steps": 4,
        "guidance_scale": 2.0,
    }
    return PictureWork(id=name, **(fields | options))  # type: ignore[arg-type]


def flat_image(value: int) -> Tensor:
    return torch.full((3, 16, 16), value, dtype=torch.uint8)


def mixed_jobs() -> list[PictureWork]:
    """Every kind of row side by side: other seeds, step counts, scales and tasks."""
    return [
        picture("a", seed=1, num_steps=1),
        picture("b", seed=2, num_steps=7, guidance_scale=1.0),
        picture("c", seed=3, num_steps=3, guidance_scale=5.5, negative_prompt="blurry"),
        picture("d", seed=4, num_steps=5, source=flat_image(10)),
        picture("e", seed=5, num_steps=6, source=flat_image(200), image_guidance_scale=1.7),
        picture("f", seed=6, num_steps=8, source=flat_image(90), strength=0.4, guidance_scale=1.0),
        picture("g", seed=7, num_steps=4, guidance_scale=1.0, source=flat_image(30),
                image_guidance_scale=0.5, strength=0.7),
        picture("h", seed=1, num_steps=9),
        picture("i", seed=8, num_steps=4, sampler="heun", guidance_interval=(0.3, 0.8)),
        picture("j", seed=9, num_steps=6, sampler="unipc"),
        picture("k", seed=10, num_steps=7, sampler="dpmpp-2m", source=flat_image(60), strength=0.8),
        picture("l", seed=11, num_steps=5, sampler="euler-reference", guidance_scale=1.0),
    ]  # fmt: skip


class RecordedLatents:
    """A backend that keeps the latents it is asked to decode, which is what the jobs arrived at."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.decoded: list[Tensor] = []
        self.rows: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded += list(latents)
        return self._inner.decode(latents)

    def velocity(self, x: Tensor, t: Tensor, context: TextContext) -> Tensor:
        self.rows.append(len(x))
        return self._inner.velocity(x, t, context)


def final_latents(backend: Backend, arrivals: Iterable[Sequence[Work]]) -> dict[str, Tensor]:
    """Latents of every job of a run; the order of decoding is the order of finishing."""
    recorded = RecordedLatents(backend)
    ticks = run(engine_on(recorded), arrivals)  # type: ignore[arg-type]
    assert failures(ticks) == {}
    order = [event.job_id for event in events(ticks) if isinstance(event, Finished)]
    return dict(zip(order, recorded.decoded, strict=True))


ARRIVALS = {
    "all at once": lambda jobs: [jobs],
    "one by one": lambda jobs: [[job] for job in jobs],
    "backwards": lambda jobs: [[job] for job in reversed(jobs)],
    "in two waves": lambda jobs: [jobs[::2], [], [], jobs[1::2]],
}


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_latents_do_not_depend_on_neighbours(arrival: str) -> None:
    jobs = mixed_jobs()
    mixed = final_latents(FakeBackend(LIMITS), ARRIVALS[arrival](jobs))
    for job in jobs:
        alone = final_latents(FakeBackend(LIMITS), [[job]])
        assert torch.equal(mixed[job.id], alone[job.id]), job.id


def test_jobs_of_different_lengths_share_steps() -> None:
    recorded = RecordedLatents(FakeBackend(LIMITS))
    engine = engine_on(recorded)  # type: ignore[arg-type]
    ticks = run(engine, [[picture("a", num_steps=4)], [], [picture("b", num_steps=4)]])
    assert [tick.step_rows for tick in ticks] == [2, 2, 4, 4, 2, 2]
    assert recorded.rows == [2, 2, 4, 4, 2, 2]


def test_a_picture_tells_how_it_goes() -> None:
    heard = events(run(engine_on(FakeBackend(LIMITS)), [[picture("a", num_steps=2)]]))
    assert heard[:-1] == [Stepped("a", 1, 2), Stepped("a", 2, 2), Denoised("a")]
    last = heard[-1]
    assert isinstance(last, Finished)
    assert last.tensors["images"].shape == (1, 3, 16, 16)
    assert last.tensors["images"].dtype == torch.uint8
    assert set(last.timings_s) == {"prefill", "denoise", "decode"}


def test_steps_of_an_edit_from_its_noised_source() -> None:
    job = picture("a", num_steps=10, strength=0.3, source=flat_image(7))
    ticks = run(engine_on(FakeBackend(LIMITS)), [[job]])
    steps = [event for event in events(ticks) if isinstance(event, Stepped)]
    assert [(event.step, event.num_steps) for event in steps] == [(1, 3), (2, 3), (3, 3)]
    (finished,) = [event for event in events(ticks) if isinstance(event, Finished)]
    assert set(finished.timings_s) == {"encode", "prefill", "denoise", "decode"}


@pytest.mark.parametrize(
    ("sampler", "num_evaluations"),
    [("euler", 5), ("euler-reference", 4), ("heun", 9), ("dpmpp-2m", 5), ("unipc", 5)],
)
def test_a_step_is_one_velocity_call(sampler: Sampler, num_evaluations: int) -> None:
    backend = FakeBackend(LIMITS)
    ticks = run(engine_on(backend), [[picture("a", num_steps=5, sampler=sampler)]])
    steps = [event for event in events(ticks) if isinstance(event, Stepped)]
    assert steps == [Stepped("a", done, num_evaluations) for done in range(1, num_evaluations + 1)]
    assert backend.num_calls["velocity"] == num_evaluations


def test_guidance_acts_inside_its_interval_alone() -> None:
    """The fake model goes straight to its target, so the result is that of the last step."""
    last = plan_sampling("euler", 10, SHIFT).times[-1]

    def latents(low: float, high: float, guidance_scale: float = 4.0) -> Tensor:
        job = picture(
            "a", num_steps=10, guidance_scale=guidance_scale, guidance_interval=(low, high)
        )
        return final_latents(FakeBackend(LIMITS), [[job]])["a"]

    guided, unguided = latents(0, 1), latents(0, 1, guidance_scale=1.0)
    assert (guided - unguided).abs().max() > 0.1
    torch.testing.assert_close(latents(last, last), guided)
    torch.testing.assert_close(latents(last + 0.01, 1), unguided)
    torch.testing.assert_close(latents(0, last - 0.01), unguided)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"guidance_scale": 1.0}, [("p", False)]),
        ({"guidance_scale": 3.0}, [("p", False), ("", False)]),
        ({"guidance_scale": 3.0, "negative_prompt": "n"}, [("p", False), ("n", False)]),
        ({"guidance_scale": 1.0, "source": flat_image(0)}, [("p", True)]),
        ({"guidance_scale": 2.0, "source": flat_image(0)}, [("p", True), ("", True)]),
        (
            {"guidance_scale": 1.0, "source": flat_image(0), "image_guidance_scale": 2.0},
            [("p", True), ("", True), ("", False)],
        ),
        ({"guidance_scale": 1.0, "image_guidance_scale": 2.0}, [("p", False)]),
        ({"guidance_scale": 1.0, "autoguided": True}, [("p", False)]),
    ],
)
def test_rows_that_guidance_needs(options: dict[str, object], rows: list[tuple[str, bool]]) -> None:
    expected = [Row(prompt=prompt, edit=edit) for prompt, edit in rows]
    assert picture("a", prompt="p", **options).rows() == expected


def test_autoguidance_starts_from_the_guide_with_the_same_prompt() -> None:
    rows = picture("a", prompt="p", guidance_scale=2.0, autoguided=True).rows()
    assert rows == [Row(prompt="p", edit=False), Row(prompt="p", edit=False, guide=True)]


def test_encode_then_decode_gives_the_images_back() -> None:
    images = torch.stack([flat_image(value) for value in (0, 51, 102, 153, 204, 255)])
    encoded = results(run(engine_on(FakeBackend(LIMITS)), [[EncodeWork(id="e", images=images)]]))
    latents = encoded["e"]
    assert {name: tuple(tensor.shape) for name, tensor in latents.items()} == {
        name: (6, 4, 2, 2) for name in ("latents", "mean", "logvar")
    }
    assert torch.equal(latents["latents"], latents["mean"])
    work = DecodeWork(id="d", latents=latents["latents"])
    decoded = results(run(engine_on(FakeBackend(LIMITS)), [[work]]))
    assert torch.equal(decoded["d"]["images"], images)


def test_a_draw_from_the_posterior_is_its_formula() -> None:
    work = EncodeWork(id="e", images=flat_image(128)[None].repeat(2, 1, 1, 1), sample=True, seed=9)
    tensors = results(run(engine_on(FakeBackend(LIMITS)), [[work]]))["e"]
    noise = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(9))
    expected = tensors["mean"] + (tensors["logvar"] / 2).exp() * noise
    torch.testing.assert_close(tensors["latents"], expected)


def test_a_large_decode_neither_stalls_pictures_nor_waits_for_them() -> None:
    backend = FakeBackend(LIMITS)
    large = DecodeWork(id="large", latents=torch.zeros(20, 4, 2, 2))
    engine = engine_on(backend, clock=lambda: 0.0)  # everything fits beside a step
    ticks = run(engine, [[large], [picture("a", num_steps=3)]])
    finished = [event.job_id for event in events(ticks) if isinstance(event, Finished)]
    assert finished == ["a", "large"]
    assert all(tick.step_rows == 2 for tick in ticks[1:4])
    assert len(ticks) == 6  # 21 images in slices of four


@pytest.mark.parametrize("call", [1, 2, 3, 5])
def test_a_fault_that_does_not_come_back_costs_no_job(call: int) -> None:
    jobs = mixed_jobs()
    clean = results(run(engine_on(FakeBackend(LIMITS)), [jobs]))
    backend = FakeBackend(LIMITS, fail_calls=frozenset({("velocity", call)}))
    ticks = run(engine_on(backend), [jobs])
    assert failures(ticks) == {}
    assert sum(len(tick.faults) for tick in ticks) == 1
    for name, tensors in results(ticks).items():
        assert torch.equal(tensors["images"], clean[name]["images"])


@pytest.mark.parametrize("stage", ["encode", "prefill", "decode", "velocity"])
def test_a_fault_of_a_lone_job_fails_it_with_the_reason(stage: str) -> None:
    backend = FakeBackend(LIMITS, fail_calls=frozenset({(stage, 1)}))
    engine = engine_on(backend)
    ticks = run(engine, [[picture("a", source=flat_image(3), guidance_scale=1.0)], [], [], [], []])
    failed = failures(ticks)
    assert list(failed) == ["a"]
    assert f"{stage} call 1" in str(failed["a"])
    assert list(results(run(engine, [[picture("b")]]))) == ["b"]


@pytest.mark.parametrize("buckets", [(), (2, 4, 8, 16)])
def test_only_the_poisoned_job_fails(buckets: tuple[int, ...]) -> None:
    jobs = mixed_jobs()
    clean = results(run(engine_on(FakeBackend(LIMITS)), [jobs]))
    poisoned = [*jobs[:3], picture("bad", prompt="some venom"), *jobs[3:]]
    calibration = Calibration(max_rows=16, max_images=4, buckets=buckets)
    backend = FakeBackend(LIMITS, poison="venom")
    ticks = run(engine_on(backend, calibration=calibration), [poisoned])
    assert list(failures(ticks)) == ["bad"]
    finished = results(ticks)
    assert finished.keys() == clean.keys()
    for name, tensors in finished.items():
        assert torch.equal(tensors["images"], clean[name]["images"])


@pytest.mark.parametrize("buckets", [(), (2, 4, 8, 16)])
def test_out_of_memory_lowers_the_rows_and_costs_no_job(buckets: tuple[int, ...]) -> None:
    calibration = Calibration(max_rows=16, max_images=4, buckets=buckets)
    engine = engine_on(FakeBackend(LIMITS, memory_rows=5), calibration=calibration)
    ticks = run(engine, [[picture(name) for name in "abcdefgh"]])
    assert failures(ticks) == {}
    assert len(results(ticks)) == 8
    assert engine.max_rows == 4
    assert all(isinstance(fault, OutOfMemory) for tick in ticks for fault in tick.faults)
    # Having learned the limit, it does not run into it again.
    assert [len(tick.faults) > 0 for tick in ticks] == [True] + [False] * (len(ticks) - 1)


def test_out_of_memory_on_a_single_job_fails_it() -> None:
    engine = engine_on(FakeBackend(LIMITS, memory_rows=1))
    ticks = run(engine, [[picture("a"), picture("b", guidance_scale=1.0)]])
    assert list(failures(ticks)) == ["a"]
    assert list(results(ticks)) == ["b"]


class NotANumber(FakeBackend):
    """Gives NaN to the rows of one prompt, as a broken weight or an overflow would."""

    def velocity(self, x: Tensor, t: Tensor, context: TextContext) -> Tensor:
        velocity = super().velocity(x, t, replace(context, values=torch.zeros_like(context.values)))
        velocity[context.values.flatten() == 1] = float("nan")
        return velocity


def test_values_that_are_not_finite_fail_their_job_alone() -> None:
    backend = NotANumber(LIMITS, poison="venom")
    ticks = run(engine_on(backend), [[picture("a"), picture("b", prompt="venom"), picture("c")]])
    assert list(failures(ticks)) == ["b"]
    assert "not finite" in str(failures(ticks)["b"])
    assert sorted(results(ticks)) == ["a", "c"]


def test_a_dropped_job_leaves_at_the_next_step() -> None:
    engine = engine_on(FakeBackend(LIMITS))
    for name in "ab":
        engine.add(picture(name, num_steps=3))
    assert engine.tick().step_rows == 4
    engine.drop("a")
    assert engine.tick().step_rows == 2
    assert list(results(run(engine))) == ["b"]


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (picture("a", source=torch.zeros(3, 8, 8, dtype=torch.uint8)), r"source image must be"),
        (EncodeWork(id="a", images=torch.zeros(0, 3, 16, 16, dtype=torch.uint8)), "empty"),
        (DecodeWork(id="a", latents=torch.zeros(1, 3, 2, 2)), r"latents must be .*4, 2, 2"),
        (picture("a", source=flat_image(1), strength=0.0), "strength must be"),
        (picture("a", num_steps=0), "num_steps must be"),
        (picture("a", num_steps=1, sampler="euler-reference"), "num_steps must be >= 2 for euler-"),
    ],
)
def test_work_that_does_not_fit_fails_with_its_numbers(work: Work, message: str) -> None:
    ticks = run(engine_on(FakeBackend(LIMITS)), [[work, picture("good")]])
    (error,) = failures(ticks).values()
    assert isinstance(error, ValueError)
    with pytest.raises(ValueError, match=message):
        raise error
    assert list(results(ticks)) == ["good"]


def test_a_backend_that_always_fails_fails_every_job() -> None:
    calls = frozenset(("velocity", k) for k in range(1, 50))
    ticks = run(engine_on(FakeBackend(LIMITS, fail_calls=calls)), [mixed_jobs()])
    assert len(failures(ticks)) == len(mixed_jobs())
    assert all(isinstance(error, BackendError) for error in failures(ticks).values())


def test_pixels_survive_the_way_to_float_and_back() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, 3, 1, 1)
    assert torch.equal(to_uint8(to_float(values)), values)
    assert to_uint8(torch.tensor([-0.5, 1.5])).tolist() == [0, 255]
