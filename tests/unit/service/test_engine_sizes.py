"""Pictures of other sizes in the engine: one call per shape, bounded slices, no influence."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.bridge import Posterior
from service.backends.base import Backend, Limits
from service.backends.fake_backend import FakeBackend
from service.backends.torch_backend import TorchBackend
from service.engine.engine import Engine
from service.engine.work import DecodeWork, EncodeWork, Failed, Finished, PictureWork, Work
from service.errors import OutOfMemory

LIMITS = Limits(
    image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=8, max_images=4, other_sizes=True
)


class Recorded(FakeBackend):
    """Keeps the shape of every batch, and may run out of memory above an area of pixels."""

    def __init__(self, limits: Limits = LIMITS, *, memory_pixels: int | None = None) -> None:
        super().__init__(limits)
        self.shapes: list[tuple[int, ...]] = []
        self._memory_pixels = memory_pixels

    def encode(self, images: Tensor) -> Posterior:
        self._note(images)
        return super().encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        self._note(latents)
        return super().decode(latents)

    def _note(self, batch: Tensor) -> None:
        self.shapes.append(tuple(batch.shape))
        pixels = len(batch) * batch.shape[-2] * batch.shape[-1]
        if self._memory_pixels is not None and pixels > self._memory_pixels:
            raise OutOfMemory(f"{pixels} pixels")


def run(backend: Backend, works: Sequence[Work]) -> tuple[list[Finished | Failed], int]:
    """What became of jobs that arrive together, and the number of ticks it took."""
    engine = Engine(backend, shift=1.0)
    for work in works:
        engine.add(work)
    ended: list[Finished | Failed] = []
    ticks = 0
    while engine.has_work:
        ended += [e for e in engine.tick().events if isinstance(e, Finished | Failed)]
        ticks += 1
    return ended, ticks


def results(backend: Backend, works: Sequence[Work]) -> dict[str, dict[str, Tensor]]:
    ended, _ = run(backend, works)
    assert [event for event in ended if isinstance(event, Failed)] == []
    return {event.job_id: event.tensors for event in ended if isinstance(event, Finished)}


def images(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(count * height + width)
    return torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)


def encodes() -> list[EncodeWork]:
    """Jobs of every size, in whole cells of 8 x 8 pixels."""
    sizes = {"own": (3, 16, 16), "wide": (2, 8, 40), "small": (5, 8, 8), "large": (2, 32, 24)}
    works = [EncodeWork(id=name, images=images(*size)) for name, size in sizes.items()]
    return [*works, EncodeWork(id="drawn", images=images(2, 16, 16), sample=True, seed=5)]


def test_results_do_not_depend_on_neighbours_of_other_sizes() -> None:
    encoded = results(FakeBackend(LIMITS), encodes())
    for work in encodes():
        alone = results(FakeBackend(LIMITS), [work])[work.id]
        for name, tensor in alone.items():
            assert torch.equal(encoded[work.id][name], tensor), (work.id, name)
            rows, columns = (side // 8 for side in work.images.shape[-2:])
            assert tensor.shape == (len(work.images), 4, rows, columns)
    decodes = [DecodeWork(id=each.id, latents=encoded[each.id]["mean"]) for each in encodes()]
    decoded = results(FakeBackend(LIMITS), decodes)
    for work, original in zip(decodes, encodes(), strict=True):
        alone = results(FakeBackend(LIMITS), [work])[work.id]
        assert torch.equal(decoded[work.id]["images"], alone["images"])
        assert alone["images"].shape == original.images.shape


def test_flat_pictures_of_any_size_come_back() -> None:
    flat = torch.arange(2, dtype=torch.uint8).mul(100).view(2, 1, 1, 1).expand(2, 3, 24, 8)
    latents = results(FakeBackend(LIMITS), [EncodeWork(id="e", images=flat)])["e"]["latents"]
    decoded = results(FakeBackend(LIMITS), [DecodeWork(id="d", latents=latents)])["d"]["images"]
    assert torch.equal(decoded, flat)


def test_every_call_has_one_shape_and_jobs_of_one_shape_share_it() -> None:
    backend = Recorded()
    works = [
        EncodeWork(id="a", images=images(1, 16, 16)),
        EncodeWork(id="b", images=images(1, 8, 8)),
        EncodeWork(id="c", images=images(1, 16, 16)),
        EncodeWork(id="d", images=images(1, 8, 8)),
    ]
    _, ticks = run(backend, works)
    assert ticks == 1
    assert sorted(backend.shapes) == [(2, 3, 8, 8), (2, 3, 16, 16)]


@pytest.mark.parametrize(
    ("size", "batches"),
    [
        ((16, 16), [4, 4]),  # the model's own
        ((32, 16), [2, 2, 2, 2]),  # twice its area
        ((32, 32), [1] * 8),  # four times
        ((64, 64), [1] * 8),  # beyond the budget: alone
        ((8, 8), [4, 4]),  # never more pieces than max_images
    ],
)
def test_slices_are_bounded_by_pixels(size: tuple[int, int], batches: list[int]) -> None:
    backend = Recorded()
    encoded = results(backend, [EncodeWork(id="a", images=images(8, *size))])
    assert [shape[0] for shape in backend.shapes] == batches
    backend = Recorded()
    results(backend, [DecodeWork(id="a", latents=encoded["a"]["latents"])])
    assert [shape[0] for shape in backend.shapes] == batches


def test_large_pictures_do_not_hold_up_a_picture_to_denoise() -> None:
    engine = Engine(FakeBackend(LIMITS), shift=1.0)
    engine.add(EncodeWork(id="large", images=images(20, 32, 32)))
    engine.add(PictureWork(id="p", prompt="a", seed=1, num_steps=3, guidance_scale=1.0,
                           source=images(1, 16, 16)[0]))  # fmt: skip
    ended = [event for _ in range(6) for event in engine.tick().events]
    assert [event.job_id for event in ended if isinstance(event, Finished)] == ["p"]


def test_out_of_memory_is_learned_in_pixels() -> None:
    backend = Recorded(memory_pixels=2 * 16 * 16)
    ended, _ = run(backend, [EncodeWork(id="a", images=images(6, 16, 16))])
    assert all(isinstance(event, Finished) for event in ended)
    assert [shape[0] for shape in backend.shapes] == [4, 2, 2, 2]
    backend = Recorded(memory_pixels=32 * 16)
    works = [
        EncodeWork(id="b", images=images(2, 64, 8)),
        EncodeWork(id="c", images=images(4, 8, 8)),
    ]
    assert set(results(backend, works)) == {"b", "c"}


def test_a_picture_that_memory_cannot_hold_fails_alone() -> None:
    backend = Recorded(memory_pixels=4 * 16 * 16)
    works = [EncodeWork(id="huge", images=images(1, 64, 64)), *encodes()]
    ended, _ = run(backend, works)
    failed = [event for event in ended if isinstance(event, Failed)]
    assert [event.job_id for event in failed] == ["huge"]
    assert isinstance(failed[0].error, OutOfMemory)
    assert len(ended) == len(works)


FIXED = Limits(image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=8, max_images=4)


@pytest.mark.parametrize(
    ("limits", "work", "message"),
    [
        (FIXED, EncodeWork(id="a", images=images(1, 8, 8)), r"images must be \(B, 3, 16, 16\)"),
        (FIXED, DecodeWork(id="a", latents=torch.zeros(1, 4, 2, 3)), r"\(B, 4, 2, 2\)"),
        (LIMITS, EncodeWork(id="a", images=images(1, 12, 16)), "number of 8 x 8 pixels"),
        (LIMITS, EncodeWork(id="a", images=images(1, 16, 20)), "got 16 x 20"),
        (LIMITS, EncodeWork(id="a", images=images(1, 0, 16)), "got 0 x 16"),
        (LIMITS, EncodeWork(id="a", images=images(1, 16, 16)[:, :1]), r"images must be \(B, 3"),
        (LIMITS, DecodeWork(id="a", latents=torch.zeros(1, 5, 2, 2)), r"\(B, 4, h, w\)"),
        (LIMITS, DecodeWork(id="a", latents=torch.zeros(1, 4, 0, 2)), r"\(B, 4, h, w\)"),
        (LIMITS, DecodeWork(id="a", latents=torch.zeros(0, 4, 3, 3)), "must not be empty"),
        (
            LIMITS,
            PictureWork(id="a", prompt="a", seed=1, num_steps=1, guidance_scale=1.0,
                        source=images(1, 24, 16)[0]),
            r"source image must be \(3, 16, 16\)",
        ),
    ],
)  # fmt: skip
def test_shapes_that_are_refused(limits: Limits, work: Work, message: str) -> None:
    ended, _ = run(FakeBackend(limits), [work])
    (failed,) = ended
    assert isinstance(failed, Failed)
    with pytest.raises(ValueError, match=message):
        raise failed.error


def test_limits_need_whole_cells() -> None:
    with pytest.raises(ValueError, match=r"\(16, 18\) is not divisible by the latents' grid"):
        Limits(image_size=(16, 18), latent_shape=(4, 2, 4), max_rows=4, max_images=1)


def test_neighbours_of_other_sizes_change_nothing_in_a_real_model(tiny_bundle: Path) -> None:
    backend = TorchBackend.load(tiny_bundle, threads=1)
    sizes = {"own": (3, 32, 32), "wide": (2, 16, 48), "tall": (2, 40, 8), "large": (1, 64, 64)}
    works = {name: EncodeWork(id=name, images=images(*size)) for name, size in sizes.items()}
    together = results(backend, list(works.values()))
    for name, work in works.items():
        alone = results(backend, [work])[name]["mean"]
        torch.testing.assert_close(together[name]["mean"], alone, rtol=0, atol=1e-4)
    decodes = [DecodeWork(id=name, latents=together[name]["mean"]) for name in works]
    decoded = results(backend, decodes)
    for work in decodes:
        alone = results(backend, [work])[work.id]["images"]
        assert alone.shape == works[work.id].images.shape
        assert (decoded[work.id]["images"].int() - alone.int()).abs().max() <= 1
