"""A picture is the same whoever shares its batches: hundreds of jobs at once against each alone."""

import logging
import os
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from models.context import Context
from models.manifest import SAMPLERS, read_manifest
from service.backends.base import Backend, Limits
from service.backends.fake_backend import FakeBackend
from service.backends.torch_backend import TorchBackend
from service.engine.calibration import Calibration
from service.engine.engine import Engine
from service.engine.work import Failed, Finished, PictureWork, Previewed, Stepped, Tick

log = logging.getLogger(__name__)

FULL_SIZE = bool(os.environ.get("RPIAE_FULL_SIZE"))
STICKERS = Path("bundles/stickers")
WORDS = ("red", "blue", "a circle", "a square", "on green", "two stars", "small", "", "no")


def random_image(rng: random.Random, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 of eight by eight smooth blobs."""
    generator = torch.Generator().manual_seed(rng.randrange(6))  # some sources come again
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    return functional.interpolate(coarse, size, mode="bilinear")[0].mul(255).to(torch.uint8)


def random_mask(rng: random.Random, size: tuple[int, int]) -> Tensor:
    """(H, W) bool with a rectangle that may change."""
    mask = torch.zeros(size, dtype=torch.bool)
    top, left = (rng.randrange(side) for side in size)
    mask[top : top + size[0] // 2, left : left + size[1] // 2] = True
    return mask


def random_jobs(
    count: int, steps: tuple[int, int], size: tuple[int, int], rng: random.Random
) -> list[PictureWork]:
    """Generations, edits and variations with options of every kind."""
    jobs = []
    for index in range(count):
        source = random_image(rng, size) if rng.random() < 0.5 else None
        interval = (0.0, 1.0)
        if rng.random() < 0.4:
            low, high = sorted((rng.random(), rng.random()))
            interval = (low, high)
        jobs.append(
            PictureWork(
                id=f"job-{index}",
                prompt=" ".join(rng.choices(WORDS, k=rng.randint(0, 4))),
                negative_prompt=rng.choice(WORDS) if rng.random() < 0.3 else "",
                seed=rng.randrange(2**40),
                num_steps=rng.randint(*steps),
                guidance_scale=rng.choice((1.0, 1.0, 2.0, 4.5)),
                sampler=rng.choice(SAMPLERS),
                image_guidance_scale=rng.choice((1.0, 1.6)) if source is not None else 1.0,
                guidance_interval=interval,
                strength=rng.choice((1.0, 0.8, 0.4)) if source is not None else 1.0,
                source=source,
                mask=random_mask(rng, size) if source is not None and rng.random() < 0.5 else None,
                partial_images=rng.randint(0, 3),
                owner=rng.choice(("one", "two")),
                urgency=rng.randint(0, 1),
                deadline_at=rng.choice((None, 2e12, 3e12)),
            )
        )
    return jobs


def run(engine: Engine, arrivals: Sequence[Sequence[PictureWork]]) -> list[Tick]:
    ticks: list[Tick] = []
    waiting = list(arrivals)
    while waiting or engine.has_work:
        for work in waiting.pop(0) if waiting else ():
            engine.add(work)
        ticks.append(engine.tick())
        assert not any(isinstance(event, Failed) for event in ticks[-1].events)
    return ticks


def pictures(ticks: list[Tick]) -> dict[str, Tensor]:
    finished = [e for tick in ticks for e in tick.events if isinstance(e, Finished)]
    return {event.job_id: event.tensors["images"] for event in finished}


def previews(ticks: list[Tick]) -> dict[tuple[str, int], Tensor]:
    made = [e for tick in ticks for e in tick.events if isinstance(e, Previewed)]
    return {(event.job_id, event.index): event.images for event in made}


def random_arrivals(jobs: list[PictureWork], rng: random.Random) -> list[list[PictureWork]]:
    """Groups of jobs by the tick that they come before."""
    groups: dict[int, list[PictureWork]] = defaultdict(list)
    for job in jobs:
        groups[rng.randrange(len(jobs))].append(job)
    return [groups[tick] for tick in range(len(jobs))]


class Curved(FakeBackend):
    """Its velocity depends on the point in a curved way, so that an error of one step stays; its
    pictures show latents of any size. All by operations that are the same for each value.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.rows: list[int] = []

    def velocity(self, x: Tensor, t: Tensor, context: Context) -> Tensor:
        self.rows.append(len(x))
        return super().velocity(x, t, context) + 2 * x / (1 + x * x)

    def decode(self, latents: Tensor) -> Tensor:
        return super().decode(latents / (1 + latents.abs()))


def num_pauses(ticks: list[Tick]) -> int:
    """How often a picture on its way did not step."""
    last: dict[str, int] = {}
    pauses = 0
    for index, tick in enumerate(ticks):
        for event in tick.events:
            if isinstance(event, Stepped):
                pauses += last.get(event.job_id, index - 1) < index - 1
                last[event.job_id] = index
    return pauses


def test_bitwise_with_padding_preemption_previews_and_cache() -> None:
    rng = random.Random(1)
    limits = Limits(
        image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=24, max_images=4, padded=True
    )
    jobs = random_jobs(200, (5, 50), limits.image_size, rng)
    backend = Curved(limits)
    buckets = (1, 2, 4, 8, 12, 16, 24)
    calibration = Calibration(max_rows=24, max_images=4, buckets=buckets)
    engine = Engine(backend, shift=1.5, calibration=calibration)
    ticks = run(engine, random_arrivals(jobs, rng))
    together, seen = pictures(ticks), previews(ticks)
    assert len(together) == 200
    assert set(backend.rows) <= set(buckets)
    assert any(tick.padding_rows for tick in ticks)
    assert num_pauses(ticks) > 100
    for job in jobs:
        alone = run(Engine(Curved(limits), shift=1.5, cache_bytes=0), [[job]])
        assert torch.equal(together[job.id], pictures(alone)[job.id]), job
        for key, image in previews(alone).items():
            assert torch.equal(seen.get(key, image), image), key
    assert len({image.numpy().tobytes() for image in together.values()}) > 150
    assert len(seen) > 100


def close(one: Tensor, other: Tensor) -> float:
    """Share of values that are at most 1/255 apart."""
    return float(((one.int() - other.int()).abs() <= 1).float().mean())


@pytest.mark.timeout(900)
def test_stickers_with_the_torch_backend() -> None:
    """RPIAE_FULL_SIZE=1 runs 200 jobs of 5 to 50 steps; --log-cli-level=info tells the figure."""
    rng = random.Random(2)
    backend: Backend = TorchBackend.load(STICKERS, threads=1)
    count, steps = (200, (5, 50)) if FULL_SIZE else (24, (4, 8))
    jobs = random_jobs(count, steps, backend.limits.image_size, rng)
    shift = read_manifest(STICKERS).timestep_shift
    calibration = Calibration(max_rows=16, max_images=4, buckets=(2, 4, 8, 16))
    engine = Engine(backend, shift=shift, calibration=calibration)
    together = pictures(run(engine, random_arrivals(jobs, rng)))
    shares = []
    for job in jobs:
        alone = pictures(run(Engine(backend, shift=shift), [[job]]))[job.id]
        shares.append(close(together[job.id], alone))
    log.info("%d jobs: at most 1/255 apart on %.6f of the values", len(jobs), min(shares))
    assert min(shares) >= 0.999
