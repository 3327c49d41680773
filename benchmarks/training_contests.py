"""The two sides of each training stage: the published trainers' step, and ours.

Both begin from the same random weights and see the same images; one thread, one process.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import reference_training as reference
from models.autoencoder import RPiAE
from models.pivot import PivotReplica
from models.text_denoiser import TextDenoiser
from models.transport import default_shift
from training.adversary import Adversary
from training.batches import WORLDS, image_batch, random_generator, tokenizer_world, torch_generator
from training.bridge import bridge_loss
from training.config import AutoencoderConfig, ComputeConfig, DiffusionConfig, RunConfig
from training.decoder import decoder_step
from training.diffusion import Rows, train_step
from training.ema import Averages, Ema
from training.optim import make_optimizer, update
from training.perceptual import make_image_loss
from training.pivot import pivot_step
from training.presets import PRESETS
from training.processes import Processes

KERNELS = ("torch", "onednn")
EMA_DECAY = 0.9978

Step = Callable[[int], object]


@dataclass(frozen=True)
class Contest:
    """One stage: `reference` is how the published trainer steps, the others are ours."""

    stage: str
    batch: int
    sides: dict[str, Step]


def preset(name: str, kernels: str) -> Any:
    """A stickers' stage with other kernels."""
    config = PRESETS[f"stickers-{name}"]
    return replace(config, compute=ComputeConfig(cpu_kernels=kernels))


def sample_images(config: RunConfig) -> Tensor:
    """One batch of the stage's own world."""
    world = tokenizer_world(WORLDS[config.world])
    return image_batch(world, config.batch_size, random_generator(0, "bench", 0))


def start(config: RunConfig) -> RPiAE:
    """The same random weights on every side."""
    torch.manual_seed(0)
    return RPiAE(config.model)


def pivot_contest() -> Contest:
    config: AutoencoderConfig = preset("pivot", "torch")
    images, (image_loss, _) = sample_images(config), make_image_loss(config)
    model = start(config)
    teacher = copy.deepcopy(model.encoder).requires_grad_(False)
    modules = (model.encoder, model.decoder)
    trained = [p for module in modules for p in module.parameters()]
    loop = reference.ReferenceLoop(modules, trained, config.optim)

    def published(step: int) -> float:
        generator = torch_generator(0, "bench", step)
        return loop(
            lambda: reference.pivot_loss(config, *modules, teacher, image_loss, images, generator)
        )

    return Contest(
        "1 pivot",
        config.batch_size,
        {"reference": published} | {kernels: our_pivot(images, kernels) for kernels in KERNELS},
    )


def our_pivot(images: Tensor, kernels: str) -> Step:
    config: AutoencoderConfig = preset("pivot", kernels)
    processes, model = Processes(config.compute), start(config)
    replica = PivotReplica(model.encoder)
    for module in (model, replica):
        processes.place(module)
    optimizer = make_optimizer(
        [*model.encoder.parameters(), *model.decoder.parameters()], config.optim
    )
    averages = Averages({"encoder": model.encoder, "decoder": model.decoder}, EMA_DECAY)
    adversary = Adversary(config, replica.encoder, processes)
    image_loss, _ = make_image_loss(config)

    def step(number: int) -> None:
        terms = pivot_step(
            config,
            model.encoder,
            model.decoder,
            replica,
            images,
            torch_generator(0, "bench", number),
            image_loss=image_loss,
            adversary=adversary,
            step=number,
            processes=processes,
        )
        update(optimizer, number, config.steps, config.optim, terms, 0)
        averages.update(number)

    return step


def tokenizer_contest(stage: str, name: str) -> Contest:
    """Stages 2 and 3, which train a part of the whole model."""
    config: AutoencoderConfig = preset(name, "torch")
    images, (image_loss, _) = sample_images(config), make_image_loss(config)
    model = start(config)
    loop = reference.ReferenceLoop([model], train_part(model, name), config.optim)

    def published(step: int) -> float:
        generator = torch_generator(0, "bench", step)
        if name == "bridge":
            return loop(lambda: reference.bridge_loss(config, model, images, generator))
        return loop(lambda: reference.decoder_loss(model, image_loss, images))

    sides: dict[str, Step] = {"reference": published}
    sides |= {kernels: our_tokenizer_step(name, images, kernels) for kernels in KERNELS}
    return Contest(stage, config.batch_size, sides)


def train_part(model: RPiAE, name: str) -> list[nn.Parameter]:
    """The stage's parameters; the others are frozen."""
    model.requires_grad_(False)
    parts = {"bridge": (model.bridge_encoder, model.bridge_decoder), "decoder": (model.decoder,)}
    trained = [p for part in parts[name] for p in part.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def our_tokenizer_step(name: str, images: Tensor, kernels: str) -> Step:
    config: AutoencoderConfig = preset(name, kernels)
    processes, model = Processes(config.compute), start(config)
    trained = train_part(model, name)
    processes.place(model)
    optimizer, averages = make_optimizer(trained, config.optim), Averages({"m": model}, EMA_DECAY)
    adversary = Adversary(config, model.encoder, processes)
    image_loss, _ = make_image_loss(config)

    def step(number: int) -> None:
        if name == "bridge":
            generator = torch_generator(0, "bench", number)
            loss, terms = bridge_loss(config, model, images, generator, processes)
            loss.backward()
        else:
            terms = decoder_step(
                config,
                model,
                images,
                torch_generator(0, "bench", number),
                image_loss=image_loss,
                adversary=adversary,
                step=number,
                processes=processes,
            )
        update(optimizer, number, config.steps, config.optim, terms, 0)
        averages.update(number)

    return step


def diffusion_contest() -> Contest:
    """Stage 4, text-to-image: the reference encodes its images in every step, ours has a pool."""
    config: DiffusionConfig = preset("diffusion", "torch")
    images, model = sample_images(config), start(config).requires_grad_(False)
    torch.manual_seed(0)
    denoiser = TextDenoiser(config.denoiser)
    prompts = sample_prompts(config)
    shift = default_shift(config.denoiser.latent_shape)
    loop = reference.ReferenceLoop([denoiser], denoiser.parameters(), config.optim)

    def published(step: int) -> float:
        with torch.no_grad():
            latents = model.encode(images).latent_dist.mean
        generator = torch_generator(0, "bench", step)
        return loop(
            lambda: reference.diffusion_loss(config, denoiser, latents, prompts, shift, generator)
        )

    latents = model.encode(images).latent_dist.mean
    rows = Rows(latents, prompts, torch.zeros(len(latents), *latents.shape[-2:]), None)
    sides: dict[str, Step] = {"reference": published}
    sides |= {kernels: our_diffusion_step(rows, kernels) for kernels in KERNELS}
    return Contest("4 diffusion", config.batch_size, sides)


def sample_prompts(config: DiffusionConfig) -> Tensor:
    """Ids (B, T), 16 words each."""
    shape = (config.batch_size, config.denoiser.max_prompt_tokens)
    prompts = torch.randint(3, 200, shape, generator=torch.Generator().manual_seed(0))
    prompts[:, 16:] = 0
    return prompts


def our_diffusion_step(rows: Rows, kernels: str) -> Step:
    config: DiffusionConfig = preset("diffusion", kernels)
    processes, shift = Processes(config.compute), default_shift(config.denoiser.latent_shape)
    torch.manual_seed(0)
    denoiser = TextDenoiser(config.denoiser)
    processes.place(denoiser)
    optimizer = make_optimizer(denoiser.parameters(), config.optim)
    ema = Ema(denoiser, config.ema_decay)

    def step(number: int) -> None:
        generator = torch_generator(0, "bench", number)
        terms = train_step(config, denoiser, [rows], shift, generator, processes)
        update(optimizer, number, config.steps, config.optim, terms, 0)
        ema.update(denoiser, number)

    return step


def contests() -> Iterator[Contest]:
    """All four, one after another."""
    yield pivot_contest()
    yield tokenizer_contest("2 bridge", "bridge")
    yield tokenizer_contest("3 decoder", "decoder")
    yield diffusion_contest()
