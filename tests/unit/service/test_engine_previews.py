"""Previews on the way, and masks that keep parts of the source."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models.context import Context
from models.manifest import SAMPLERS, Sampler
from models.solvers import plan_sampling
from models.transport import initial_noise, interpolate
from service.backends.base import Limits
from service.backends.fake_backend import FakeBackend
from service.engine.engine import Engine
from service.engine.picture import preview_steps
from service.engine.work import (
    DecodeWork,
    EngineEvent,
    Failed,
    Finished,
    PictureWork,
    Previewed,
    Work,
)

LIMITS = Limits(image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=16, max_images=4)
SHIFT = 1.5


def run(backend: FakeBackend, works: Sequence[Work]) -> list[EngineEvent]:
    engine = Engine(backend, shift=SHIFT, clock=lambda: 0.0)
    for work in works:
        engine.add(work)
    events: list[EngineEvent] = []
    while engine.has_work:
        events += engine.tick().events
    return events


def picture(name: str, **options: object) -> PictureWork:
    fields: dict[str, object] = {"prompt": name, "seed": 3, "num_steps": 8, "guidance_scale": 2.0}
    return PictureWork(id=name, **(fields | options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "num_evaluations", "steps"),
    [
        (0, 50, ()),
        (1, 50, (25,)),
        (3, 50, (12, 25, 37)),
        (2, 9, (3, 6)),
        (3, 4, (1, 2, 3)),
        (3, 2, (1,)),
        (3, 1, ()),
    ],
)
def test_previews_are_spread_evenly(
    count: int, num_evaluations: int, steps: tuple[int, ...]
) -> None:
    assert preview_steps(count, num_evaluations) == steps


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_preview_is_the_predicted_clean_picture(sampler: Sampler) -> None:
    """The fake model's velocity leads straight to the prompt's colours: every preview has them."""
    events = run(FakeBackend(LIMITS), [picture("a", sampler=sampler, partial_images=3)])
    previews = [event for event in events if isinstance(event, Previewed)]
    final = events[-1]
    assert isinstance(final, Finished)
    num_steps = plan_sampling(sampler, 8, SHIFT).num_evaluations
    assert [(event.index, event.step, event.num_steps) for event in previews] == [
        (index, num_steps * (index + 1) // 4, num_steps) for index in range(3)
    ]
    for preview in previews:
        assert preview.images.shape == (1, 3, 16, 16)
        assert preview.images.dtype == torch.uint8
        difference = preview.images.int() - final.tensors["images"].int()
        assert difference.abs().max() <= 1 + (sampler == "euler-reference")


def test_previews_change_no_picture() -> None:
    plain = run(FakeBackend(LIMITS), [picture("a")])[-1]
    seen = run(FakeBackend(LIMITS), [picture("a", partial_images=3)])[-1]
    assert isinstance(plain, Finished)
    assert isinstance(seen, Finished)
    assert torch.equal(plain.tensors["images"], seen.tensors["images"])


def test_a_preview_that_comes_too_late_is_left_out() -> None:
    """All time beside the steps goes to a decode that is first."""

    class Slow(FakeBackend):
        now = 0.0

        def velocity(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
            self.now += 1.0
            return super().velocity(x, t, context)

        def decode(self, latents: Tensor) -> Tensor:
            self.now += 1.0
            return super().decode(latents)

    backend = Slow(LIMITS)
    engine = Engine(backend, shift=SHIFT, clock=lambda: backend.now)
    engine.add(DecodeWork(id="large", latents=torch.zeros(60, 4, 2, 2)))
    engine.add(picture("a", partial_images=3))
    events: list[EngineEvent] = []
    while engine.has_work:
        events += engine.tick().events
    assert [e.job_id for e in events if isinstance(e, Finished)] == ["a", "large"]
    assert not any(isinstance(event, Previewed) for event in events)


def test_a_preview_that_fails_costs_nothing_else() -> None:
    backend = FakeBackend(LIMITS, fail_calls=frozenset({("decode", 1)}))
    events = run(backend, [picture("a", partial_images=2)])
    assert isinstance(events[-1], Finished)
    assert [e.index for e in events if isinstance(e, Previewed)] == [1]


class Latents(FakeBackend):
    """Keeps what it is asked to decode and every point whose velocity it is asked for; its velocity
    is far from a straight path.
    """

    def __init__(self) -> None:
        super().__init__(LIMITS)
        self.decoded: list[Tensor] = []
        self.points: list[tuple[float, Tensor]] = []

    def decode(self, latents: Tensor) -> Tensor:
        self.decoded += list(latents)
        return super().decode(latents)

    def velocity(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        self.points.append((float(t[0]), x[0].clone()))
        wild = torch.sin(7 * x) + 3 * t.view(-1, 1, 1, 1)
        return super().velocity(x, t, context) + wild


def source() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8)


def corner_mask() -> Tensor:
    """One pixel of the last cell may change."""
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[9, 15] = True
    return mask


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_kept_cells_are_the_noised_source_at_every_evaluation(
    sampler: Sampler, strength: float
) -> None:
    backend = Latents()
    job = picture("a", source=source(), mask=corner_mask(), sampler=sampler, strength=strength)
    assert isinstance(run(backend, [job])[-1], Finished)
    (clean,) = FakeBackend(LIMITS).encode(source()[None] / 255).mean
    noise = initial_noise(job.seed, LIMITS.latent_shape)
    kept = torch.tensor([[True, True], [True, False]])
    assert (
        len(backend.points) == plan_sampling(sampler, 8, SHIFT, strength=strength).num_evaluations
    )
    for t, point in backend.points:
        expected = interpolate(clean[None], noise[None], torch.tensor([t]))[0]
        torch.testing.assert_close(point[:, kept], expected[:, kept], rtol=0, atol=1e-4)
    (latents,) = backend.decoded
    tolerance = 0.01 if sampler == "euler-reference" else 1e-4  # which ends a little before t = 0
    torch.testing.assert_close(latents[:, kept], clean[:, kept], rtol=0, atol=tolerance)
    assert (latents[:, ~kept] - clean[:, ~kept]).abs().max() > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mask_of_everything_changes_nothing(sampler: Sampler) -> None:
    everything = torch.ones(16, 16, dtype=torch.bool)
    backend = Latents()
    run(backend, [picture("a", source=source(), sampler=sampler, mask=everything)])
    run(backend, [picture("a", source=source(), sampler=sampler)])
    assert torch.equal(*backend.decoded)


def test_masked_previews_keep_the_source_too() -> None:
    backend = Latents()
    job = picture("a", source=source(), mask=corner_mask(), sampler="unipc", partial_images=3)
    previews = [event for event in run(backend, [job]) if isinstance(event, Previewed)]
    assert len(previews) == 3
    (clean,) = FakeBackend(LIMITS).encode(source()[None] / 255).mean
    for latents in backend.decoded:
        torch.testing.assert_close(latents[:, 0], clean[:, 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": torch.ones(16, 16, dtype=torch.bool)}, "a mask needs a source image"),
        (
            {"source": source(), "mask": torch.ones(8, 16, dtype=torch.bool)},
            r"mask must be \(16, 16\), got \(8, 16\)",
        ),
    ],
)
def test_masks_that_do_not_fit_fail_their_job(options: dict[str, Tensor], message: str) -> None:
    (event,) = run(FakeBackend(LIMITS), [picture("a", **options)])
    assert isinstance(event, Failed)
    with pytest.raises(ValueError, match=message):
        raise event.error
