"""Prompts and sources that come again are not computed again, and nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from service.backends.base import Limits
from service.backends.fake_backend import FakeBackend
from service.backends.torch_backend import TorchBackend
from service.engine.cache import ByteCache
from service.engine.engine import Engine
from service.engine.work import EncodeWork, Finished, PictureWork, Work

LIMITS = Limits(image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=16, max_images=4)


class Counting(FakeBackend):
    """Counts prompts that are prefilled and images that are encoded."""

    def __init__(self, **options: Any) -> None:
        super().__init__(LIMITS, **options)
        self.prompts: list[str] = []
        self.num_encoded = 0

    def prefill(self, prompts: Any, source_latents: Any, *, guide: bool = False) -> Any:
        context = super().prefill(prompts, source_latents, guide=guide)
        self.prompts += prompts
        return context

    def encode(self, images: Tensor) -> Any:
        self.num_encoded += len(images)
        return super().encode(images)


def run(engine: Engine, *works: Work) -> dict[str, Finished]:
    for work in works:
        engine.add(work)
    done = {}
    while engine.has_work:
        for event in engine.tick().events:
            if isinstance(event, Finished):
                done[event.job_id] = event
    assert set(done) == {work.id for work in works}
    return done


def picture(name: str, **options: object) -> PictureWork:
    fields: dict[str, object] = {"prompt": "p", "seed": 1, "num_steps": 3, "guidance_scale": 2.0}
    return PictureWork(id=name, **(fields | options))  # type: ignore[arg-type]


def source(value: int) -> Tensor:
    return torch.full((3, 16, 16), value, dtype=torch.uint8)


def test_a_prompt_is_prefilled_once_for_all_pictures_of_a_request() -> None:
    backend = Counting()
    engine = Engine(backend, shift=1.0)
    run(engine, *(picture(f"a-{seed}", seed=seed) for seed in range(8)))
    assert sorted(backend.prompts) == ["", "p"]
    run(engine, picture("again"))
    assert sorted(backend.prompts) == ["", "p"]
    run(engine, picture("other", prompt="q", negative_prompt="n"))
    assert sorted(backend.prompts) == ["", "n", "p", "q"]


def test_an_edit_sees_its_own_source() -> None:
    backend = Counting()
    engine = Engine(backend, shift=1.0)
    first = run(engine, *(picture(f"a-{seed}", source=source(9), seed=seed) for seed in range(8)))
    assert (backend.num_encoded, sorted(backend.prompts)) == (1, ["", "p"])
    second = run(engine, picture("b", source=source(9)), picture("c", source=source(200)))
    assert (backend.num_encoded, sorted(backend.prompts)) == (2, ["", "", "p", "p"])
    assert torch.equal(second["b"].tensors["images"], first["a-1"].tensors["images"])
    assert not torch.equal(second["c"].tensors["images"], first["a-1"].tensors["images"])
    assert all("encode" in event.timings_s for event in (*first.values(), *second.values()))
    # Rows without the source do not stand in for those with it.
    run(engine, picture("d"))
    assert sorted(backend.prompts) == ["", "", "", "p", "p", "p"]


def test_owners_share_nothing_but_the_empty_prompt() -> None:
    backend = Counting()
    engine = Engine(backend, shift=1.0)
    for owner in ("one", "two", "two"):
        run(engine, picture("a", owner=owner), picture("b", owner=owner, source=source(1)))
    assert backend.num_encoded == 2
    assert sorted(backend.prompts) == ["", "", "", "p", "p", "p", "p"]  # "" thrice: two with source


def test_every_image_of_an_encode_job_is_its_own() -> None:
    backend = Counting()
    images = torch.stack([source(4)] * 4)
    latents = run(Engine(backend, shift=1.0), EncodeWork(id="e", images=images))
    assert backend.num_encoded == 4
    assert latents["e"].tensors["mean"].shape == (4, 4, 2, 2)


@pytest.mark.parametrize("cache_bytes", [0, 200, 2**20])
def test_results_are_the_same_with_any_cache(cache_bytes: int) -> None:
    """200 bytes keep a few rows, so that some come again and others are gone."""
    works = [
        picture(
            f"{round_}-{index}",
            prompt=f"prompt {index % 7}",
            seed=index,
            source=source(20 * (index % 3)) if index % 2 else None,
            image_guidance_scale=1.5,
        )
        for round_ in range(3)
        for index in range(14)
    ]
    plain = Counting()
    engine = Engine(plain, shift=1.0, cache_bytes=0)
    expected = {work.id: run(engine, work)[work.id] for work in works}
    cached = Counting()
    engine = Engine(cached, shift=1.0, cache_bytes=cache_bytes)
    for first in range(0, len(works), 14):
        done = run(engine, *works[first : first + 14])
        for name, event in done.items():
            assert torch.equal(event.tensors["images"], expected[name].tensors["images"]), name
    assert len(cached.prompts) < len(plain.prompts)


def test_a_prefill_that_fails_is_not_remembered() -> None:
    backend = Counting(fail_calls=frozenset({("prefill", 1)}))
    engine = Engine(backend, shift=1.0)
    engine.add(picture("a"))
    engine.tick()
    run(engine, picture("b"))
    assert sorted(backend.prompts) == ["", "p"]


def test_a_real_model_with_a_cache(tiny_bundle: Path) -> None:
    backend = TorchBackend.load(tiny_bundle, threads=1)
    context = backend.prefill(["a red circle", ""], None)
    row = context.select([0])
    assert context.num_bytes == 2 * row.num_bytes
    assert row.num_bytes > 4 * row.keys.numel()  # type: ignore[attr-defined]
    image = torch.arange(3 * 32 * 32).view(3, 32, 32).remainder(251).to(torch.uint8)
    works = [
        picture(str(index), prompt="a blue square", seed=index, source=image if index % 2 else None)
        for index in range(6)
    ]
    cached = Engine(backend, shift=1.5, cache_bytes=4 * row.num_bytes)
    for work in works:
        plain = run(Engine(backend, shift=1.5, cache_bytes=0), work)[work.id].tensors["images"]
        again = run(cached, work)[work.id].tensors["images"]
        assert (plain.int() - again.int()).abs().max() <= 1


def test_the_least_recently_used_goes_first() -> None:
    cache: ByteCache[str, int] = ByteCache(10)
    for index, name in enumerate("abc"):
        cache.put(name, index, 3)
    assert cache.get("a") == 0
    cache.put("d", 3, 3)
    assert ["a" in cache, "b" in cache, "c" in cache, "d" in cache] == [True, False, True, True]
    cache.put("large", 9, 11)
    assert "large" not in cache
    assert cache.num_bytes == 9
    cache.put("e", 4, 10)
    assert (cache.num_bytes, cache.get("e"), cache.get("a")) == (10, 4, None)
    cache.clear()
    assert (cache.num_bytes, cache.get("e")) == (0, None)
