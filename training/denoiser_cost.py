"""What stage 4 holds in memory and computes in a step, built on the meta device."""

import torch
from torch import Tensor, nn

from models.autoencoder import RPiAE
from models.class_denoiser import ClassDenoiser
from models.text_denoiser import TextDenoiser
from training.config import ClassDiffusionConfig, DenoiserRunConfig, DiffusionConfig
from training.stage_parts import Pass, StageParts


def class_denoiser_parts(config: ClassDiffusionConfig) -> StageParts:
    """Of a class-conditional denoiser, its pictures encoded step by step."""
    model, encode = _tokenizer(config)
    denoiser = ClassDenoiser(config.denoiser)

    def run(num: int) -> None:
        latents = torch.empty(num, *config.denoiser.latent_shape)
        labels = torch.empty(num, dtype=torch.long)
        denoiser(latents, torch.empty(num), labels).square().mean().backward()

    return StageParts(
        trained={"denoiser": denoiser},
        frozen={"autoencoder": model},
        passes=((1.0, encode), (1.0, run)),
        once=(config.statistics_images, encode),
        averaged=True,
    )


def text_denoiser_parts(config: DiffusionConfig) -> StageParts:
    """Of a text denoiser. Stickers are encoded before the first step, files in each step."""
    model, encode = _tokenizer(config)
    denoiser = TextDenoiser(config.denoiser)
    if config.freeze_text:
        denoiser.freeze_text()

    def run(num: int, with_source: bool) -> None:
        latents = torch.empty(num, *config.denoiser.latent_shape)
        prompts = torch.empty(num, config.denoiser.max_prompt_tokens, dtype=torch.long)
        context = denoiser.prefill(prompts, latents if with_source else None)
        denoiser.velocity(latents, torch.empty(num), context).square().mean().backward()

    with_source = config.edit_share * (1 - config.source_dropout)
    shares = ((1 - with_source, False), (with_source, True))
    passes: list[tuple[float, Pass]] = [
        (share, lambda num, source=source: run(num, source)) for share, source in shares if share
    ]
    scenes, edits = (config.pool_scenes if config.edit_share < 1 else 0), config.pool_edits
    num_encoded = scenes + (2 * edits if config.edit_share else 0)
    if config.data.kind != "stickers":
        num_encoded = config.statistics_images
        passes.append((1 + with_source, encode))
    return StageParts(
        trained={"denoiser": denoiser},
        frozen={"autoencoder": model},
        passes=tuple(passes),
        once=(num_encoded, encode),
        averaged=True,
    )


def _tokenizer(config: DenoiserRunConfig) -> tuple[nn.Module, Pass]:
    """The frozen autoencoder, and the pass that encodes so many pictures."""
    model = RPiAE(config.model).requires_grad_(False)
    size = config.model.image_size

    def encode(num: int) -> None:
        images: Tensor = torch.empty(num, 3, size, size)
        with torch.no_grad():
            model.encode(images)

    return model, encode
