"""The pipeline behind the other servers gives the pictures that the service's engine gives."""

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from benchmarks.emulation import emulated_backend
from benchmarks.peers.messages import Ask
from benchmarks.peers.offline import to_work
from benchmarks.peers.pipeline import Pipeline, fitting
from benchmarks.serving_load import Planned
from models.manifest import Manifest, read_manifest
from service.backends.base import Backend
from service.backends.fake_backend import FakeBackend
from service.backends.torch_backend import TorchBackend
from service.engine.engine import Engine
from service.engine.work import EncodeWork, Finished, PictureWork

STICKERS = Path(__file__).parents[3] / "bundles" / "stickers"
ROWS = 8
MIX = [
    Planned(at_s=0, task="generate", steps=2, seed=1),
    Planned(at_s=0, task="edit", steps=4, seed=2),
    Planned(at_s=0, task="encode", steps=1, seed=3),
    Planned(at_s=0, task="generate", steps=3, seed=4),
    Planned(at_s=0, task="decode", steps=1, seed=5),
    Planned(at_s=0, task="generate", steps=1, seed=6),
    Planned(at_s=0, task="edit", steps=2, seed=7),
]


def ask_of(planned: Planned, manifest: Manifest) -> Ask:
    """The same request as `to_work` makes for the engine."""
    work = to_work(planned, manifest)
    match work:
        case PictureWork():
            return Ask(
                task=planned.task,
                prompt=work.prompt,
                seed=work.seed,
                steps=work.num_steps,
                image=work.source,
            )
        case EncodeWork():
            return Ask(task="encode", image=work.images[0])
    return Ask(task="decode", latents=work.latents[0])


def by_engine(backend: Backend, manifest: Manifest, plan: Sequence[Planned]) -> list[torch.Tensor]:
    engine = Engine(backend, shift=manifest.timestep_shift)
    results = {}
    for planned in plan:
        engine.add(to_work(planned, manifest))
    while engine.has_work:
        for event in engine.tick().events:
            if isinstance(event, Finished):
                tensors = event.tensors
                results[event.job_id] = tensors.get("images", tensors.get("latents"))[0]
    return [results[str(planned.seed)] for planned in plan]


def by_pipeline(
    backend: Backend, manifest: Manifest, plan: Sequence[Planned]
) -> list[torch.Tensor]:
    made = Pipeline(backend, manifest).run([ask_of(planned, manifest) for planned in plan])
    results = [one.latents if one.ask.task == "encode" else one.image for one in made]
    assert all(result is not None for result in results)
    return results  # type: ignore[return-value]


def test_on_the_fake_backend_all_is_the_same_to_the_bit() -> None:
    manifest = read_manifest(STICKERS)
    backend = emulated_backend(manifest, ROWS, 0.0, 0.0)
    expected = by_engine(backend, manifest, MIX)
    found = by_pipeline(backend, manifest, MIX)
    assert [torch.equal(a, b) for a, b in zip(found, expected, strict=True)] == [True] * len(MIX)
    assert not torch.equal(expected[0], expected[3])  # two prompts


def test_on_the_stickers_model_pictures_are_within_one_of_255() -> None:
    manifest = read_manifest(STICKERS)
    backend = TorchBackend.load(STICKERS, threads=1, max_rows=ROWS)
    expected, found = (call(backend, manifest, MIX) for call in (by_engine, by_pipeline))
    for planned, ours, theirs in zip(MIX, expected, found, strict=True):
        if planned.task == "encode":
            torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
        else:
            assert int((ours.int() - theirs.int()).abs().max()) <= 1
    assert int((expected[0].int() - expected[3].int()).abs().max()) > 50


def test_a_batch_takes_as_many_steps_as_its_longest_and_no_row_that_is_done() -> None:
    """Four pictures of 2 rows fill 8 rows; the rest of the mix waits for their end."""
    manifest = read_manifest(STICKERS)
    calls: list[int] = []

    class Counting(FakeBackend):
        def velocity(self, x, t, context):  # type: ignore[no-untyped-def]
            calls.append(len(x))
            return super().velocity(x, t, context)

    limits = emulated_backend(manifest, ROWS, 0.0, 0.0).limits
    asks = [ask_of(planned, manifest) for planned in MIX]
    in_order = Pipeline(Counting(limits), manifest).run(asks)
    assert calls == [8, 6, 4, 2, 2, 2]  # the second batch has one of 2 steps
    calls.clear()
    by_steps = Pipeline(Counting(limits), manifest, by_steps=True).run(asks)
    assert calls == [8, 6, 2, 2, 2, 2, 2]  # 1, 2, 2 and 3 steps, then 4
    assert [one.body() for one in by_steps] == [one.body() for one in in_order]


@pytest.mark.parametrize(
    ("steps", "max_rows", "sizes"), [((1, 1, 1), 16, [3]), ((1, 1, 1), 4, [2, 1]), ((), 4, [])]
)
def test_batches_fit_the_device(steps: tuple[int, ...], max_rows: int, sizes: list[int]) -> None:
    manifest = read_manifest(STICKERS)
    pipeline = Pipeline(emulated_backend(manifest, max_rows, 0, 0), manifest)
    asks = [ask_of(replace(MIX[0], steps=one), manifest) for one in steps]
    pictures = [pipeline.start(ask, None) for ask in asks]
    assert [len(batch) for batch in fitting(pictures, max_rows)] == sizes


def test_requests_and_answers_survive_their_json() -> None:
    manifest = read_manifest(STICKERS)
    pipeline = Pipeline(emulated_backend(manifest, ROWS, 0, 0), manifest)
    file = io.BytesIO()
    Image.new("RGB", manifest.image_size[::-1], (255, 0, 51)).save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    encoded = pipeline.run([Ask.read({"task": "encode", "image": image})])[0].fields()
    assert set(encoded) == {"latents"}
    tensors = safetensors.torch.load(base64.b64decode(encoded["latents"]))
    assert tuple(tensors["latents"].shape) == (1, *manifest.latent_shape)
    decoded = pipeline.run([Ask.read({"task": "decode", "latents": encoded["latents"]})])[0]
    assert set(decoded.fields()) == {"image"}
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(decoded.fields()["image"]))))
    assert (pixels == (255, 0, 51)).all()
    assert (
        decoded.body()
        == pipeline.run([Ask.of_bytes("decode", base64.b64decode(encoded["latents"]))])[0].body()
    )
