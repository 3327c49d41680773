"""The engine on real modules gives what the offline sampler gives, whoever shares its batches."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.bundle import Bundle, load_bundle
from models.class_denoiser import ClassDenoiser, ClassDenoiserConfig
from models.class_labels import ClassEncoder
from models.sampler import SamplingOptions, generate_latents
from service.backends.torch_backend import TorchBackend
from service.engine.engine import Engine
from service.engine.work import DecodeWork, EncodeWork, Finished, PictureWork, Work
from service.errors import BackendError, OutOfMemory
from tests.mixed_jobs import SHIFT, mixed_jobs, run_jobs

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def source() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (3, 32, 32), generator=generator, dtype=torch.uint8)


def run(bundle: Bundle, arrivals: list[list[Work]]) -> dict[str, tuple[Tensor, Tensor]]:
    return run_jobs(TorchBackend(bundle), arrivals)


def test_latents_do_not_depend_on_neighbours(bundle: Bundle, source: Tensor) -> None:
    jobs = mixed_jobs(source)
    together = run(bundle, [list(jobs)])
    staggered = run(bundle, [[job] for job in reversed(jobs)])
    for job in jobs:
        latents, image = run(bundle, [[job]])[job.id]
        for mixed_latents, mixed_image in (together[job.id], staggered[job.id]):
            torch.testing.assert_close(mixed_latents, latents, rtol=0, atol=TOLERANCE)
            assert (mixed_image.int() - image.int()).abs().max() <= 1


def test_the_engine_gives_what_the_sampler_gives(bundle: Bundle, source: Tensor) -> None:
    together = run(bundle, [list(mixed_jobs(source))])
    for job in mixed_jobs(source):
        source_latents = None
        if job.source is not None:
            with torch.inference_mode():
                source_latents = bundle.autoencoder.encode(job.source[None] / 255).latent_dist.mean
        expected = generate_latents(
            bundle.denoiser,
            bundle.tokenizer,
            [job.prompt],
            [job.seed],
            SamplingOptions(
                num_steps=job.num_steps,
                shift=SHIFT,
                sampler=job.sampler,
                guidance_interval=job.guidance_interval,
                guidance_scale=job.guidance_scale,
                image_guidance_scale=job.image_guidance_scale,
                strength=job.strength,
            ),
            negative_prompts=[job.negative_prompt],
            source_latents=source_latents,
        )
        torch.testing.assert_close(together[job.id][0], expected[0], rtol=0, atol=TOLERANCE)


def test_autoguided_classes_are_what_the_sampler_gives(bundle: Bundle) -> None:
    """Pictures with and without their guide's rows, in one batch, against each one alone."""
    config = ClassDenoiserConfig(
        latent_channels=8, latent_side=4, width=16, depth=1, num_heads=2, num_classes=2
    )
    models = [ClassDenoiser(config).eval().requires_grad_(False) for _ in range(2)]
    for model in models:
        for parameter in model.parameters():
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    denoiser, guide = models
    tokenizer = ClassEncoder(["cat", "dog"])
    classes = Bundle(bundle.manifest, bundle.autoencoder, denoiser, tokenizer, guide)
    jobs = [
        PictureWork(id="guided", prompt="cat", seed=1, num_steps=4, guidance_scale=2.05,
                    autoguided=True),
        PictureWork(id="interval", prompt="dog", seed=2, num_steps=6, guidance_scale=1.5,
                    autoguided=True, guidance_interval=(0.3, 0.9), sampler="unipc"),
        PictureWork(id="plain", prompt="dog", seed=3, num_steps=5, guidance_scale=1,
                    autoguided=True),
    ]  # fmt: skip
    together = run(classes, [list(jobs)])
    for job in jobs:
        expected = generate_latents(
            denoiser,
            tokenizer,
            [job.prompt],
            [job.seed],
            SamplingOptions(
                num_steps=job.num_steps,
                shift=SHIFT,
                sampler=job.sampler,
                guidance_scale=job.guidance_scale,
                guidance_interval=job.guidance_interval,
            ),
            guide=guide,
        )
        torch.testing.assert_close(together[job.id][0], expected[0], rtol=0, atol=TOLERANCE)


def test_prompt_seed_and_source_all_matter(bundle: Bundle, source: Tensor) -> None:
    """Without this, independence of neighbours could be that of a model that sees nothing."""
    base = {"seed": 1, "num_steps": 4, "guidance_scale": 2.0, "prompt": "a red circle"}
    variants = [
        base,
        base | {"seed": 2},
        base | {"prompt": "a blue square"},
        base | {"source": source},
        base | {"source": source.flip(2)},
        base | {"guidance_scale": 5.0},
    ]
    jobs = [PictureWork(id=str(i), **fields) for i, fields in enumerate(variants)]  # type: ignore[arg-type]
    latents = [pair[0] for pair in run(bundle, [list(jobs)]).values()]
    for index, one in enumerate(latents):
        for other in latents[index + 1 :]:
            assert (one - other).abs().max() > 100 * TOLERANCE


def test_encode_and_decode_are_the_autoencoder(bundle: Bundle, source: Tensor) -> None:
    images = torch.stack([source.roll(shift, 1) for shift in range(6)])
    engine = Engine(TorchBackend(bundle), shift=SHIFT)
    engine.add(EncodeWork(id="e", images=images))
    finished = [event for _ in range(2) for event in engine.tick().events]
    (encoded,) = [event for event in finished if isinstance(event, Finished)]
    with torch.inference_mode():
        posterior = bundle.autoencoder.encode(images / 255).latent_dist
        pixels = bundle.autoencoder.decode(posterior.mean).sample.clamp(0, 1) * 255
    for name, expected in (("mean", posterior.mean), ("logvar", posterior.logvar)):
        torch.testing.assert_close(encoded.tensors[name], expected, rtol=0, atol=TOLERANCE)
    engine.add(DecodeWork(id="d", latents=encoded.tensors["latents"]))
    finished = [event for _ in range(2) for event in engine.tick().events]
    (decoded,) = [event for event in finished if isinstance(event, Finished)]
    assert (decoded.tensors["images"] - pixels).abs().max() <= 0.51


def test_limits_follow_the_manifest_and_the_setting(tiny_bundle: Path) -> None:
    backend = TorchBackend.load(tiny_bundle, threads=1, max_rows=5)
    assert backend.limits.image_size == (32, 32)
    assert backend.limits.latent_shape == (8, 4, 4)
    assert backend.limits.max_rows == 5
    backend.warm_up((1, 5))
    assert backend.memory_bytes() > 0


def test_errors_of_the_runtime_become_ours(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TorchBackend(bundle)
    with pytest.raises(BackendError, match="the model failed"):
        backend.velocity(torch.zeros(1, 3, 4, 4), torch.ones(1), backend.prefill([""], None))

    def exhaust(_latents: Tensor) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 TB")

    monkeypatch.setattr(bundle.autoencoder, "decode", exhaust)
    with pytest.raises(OutOfMemory):
        backend.decode(torch.zeros(1, 8, 4, 4))
