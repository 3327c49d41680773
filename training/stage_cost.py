"""What a stage holds in memory and computes in a step, built on the meta device.

The passes are those of the stages without their random draws and augmentations: products and what
autograd keeps are the same. Losses that begin later in a run count as if they always acted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.autoencoder import RPiAE
from models.decoder import PixelDecoder
from models.discriminator import DinoConfig, DinoEncoder, Discriminator, FrozenFeatures
from models.encoder import build_encoder
from models.pivot import PivotReplica, pivot_loss
from models.text_denoiser import TextDenoiser
from training.config import AutoencoderConfig, DiffusionConfig, PretrainConfig, RunConfig
from training.losses import adaptive_weight, gradient_loss
from training.meta_cost import Cost, measure, storage_id
from training.perceptual import Lpips
from training.pretrain import PretrainHeads, prompt_tokenizer

Pass = Callable[[int], None]
"""Forward and backward pass of so many samples."""


@dataclass(frozen=True)
class StageParts:
    """A stage's modules on the meta device, by name.

    passes: one after another, each with the share of the batch that goes through it.
    once: forward passes, with their number, before the first step. averaged: EMA of `trained`.
    """

    trained: Mapping[str, nn.Module]
    frozen: Mapping[str, nn.Module]
    passes: tuple[tuple[float, Pass], ...]
    once: tuple[int, Pass] | None = None
    averaged: bool = False

    def step_cost(self, batch_size: int, part_size: int) -> Cost:
        """FLOPs of a batch; activations of its parts of `part_size` samples, the largest."""
        flops, activations = 0.0, 0
        for share, run in self.passes:
            cost = self._measure(run, max(1, round(share * part_size)))
            flops += share * batch_size * cost.flops / max(1, round(share * part_size))
            activations = max(activations, cost.activation_bytes)
        return Cost(round(flops), activations)

    def once_flops(self) -> int:
        """FLOPs before the first step."""
        if self.once is None:
            return 0
        count, run = self.once
        return count * self._measure(run, 1).flops

    def _measure(self, run: Pass, num_samples: int) -> Cost:
        weights = {
            storage_id(tensor)
            for module in (*self.trained.values(), *self.frozen.values())
            for tensor in (*module.parameters(), *module.buffers())
        }
        return measure(lambda: run(num_samples), weights)


def stage_parts(config: RunConfig) -> StageParts:
    """Builds the stage's modules on the meta device.

    Raises:
        ValueError: no such stage is known here.
    """
    with torch.device("meta"):
        if isinstance(config, PretrainConfig):
            return _pretrain(config)
        if isinstance(config, DiffusionConfig):
            return _diffusion(config)
        builders = {"pivot": _pivot, "bridge": _bridge, "decoder": _decoder}
        if isinstance(config, AutoencoderConfig) and config.stage in builders:
            return builders[config.stage](config)
    raise ValueError(f"no dry run for stage {config.stage!r}")


def _images(config: RunConfig, num: int) -> Tensor:
    return torch.empty(num, 3, config.model.image_size, config.model.image_size)


def _pretrain(config: PretrainConfig) -> StageParts:
    tokenizer = prompt_tokenizer()
    encoder = build_encoder(config.model.encoder)
    patch_values = 3 * config.model.decoder.patch_size**2
    heads = PretrainHeads(config.model.encoder.width, patch_values, len(tokenizer.words))

    def run(num: int) -> None:
        tokens = encoder(_images(config, num))
        prompts = torch.empty(num, tokenizer.max_tokens, dtype=torch.long)
        outputs = [heads.kind(tokens), heads.color(tokens), heads.pixels(tokens)]
        outputs += [heads.background(tokens.mean(1)), heads.caption_loss(tokens, prompts)]
        sum(output.square().mean() for output in outputs).backward()

    return StageParts({"encoder": encoder, "heads": heads}, {}, ((1.0, run),))


class _Judges:
    """What judges a painted picture in stages 1 and 3: L1, perceptual, adversarial."""

    def __init__(self, config: AutoencoderConfig, frozen_encoder: nn.Module) -> None:
        self.frozen: dict[str, nn.Module] = {}
        self.trained: dict[str, nn.Module] = {}
        self.lpips = Lpips() if config.vgg_weights else None
        if self.lpips:
            self.frozen["lpips"] = self.lpips
        self.adversarial = config.gan_weight > 0
        if self.adversarial:
            eye, width = frozen_encoder, config.model.encoder.width
            if config.dino_weights:
                eye = self.frozen["dino"] = DinoEncoder(DinoConfig())
                width = eye.config.width
            self.features = FrozenFeatures(eye)
            self.discriminator = self.trained["discriminator"] = Discriminator(width)

    def image_loss(self, painted: Tensor, images: Tensor) -> Tensor:
        loss = (painted - images).abs().mean()
        if self.lpips is None:
            return loss + gradient_loss(painted, images)
        return loss + self.lpips(painted, images).mean()

    def painter_loss(self, loss: Tensor, painted: Tensor, last_weight: Tensor) -> Tensor:
        """`loss` and the weighted adversarial term, whose weight takes two more backward passes."""
        if not self.adversarial:
            return loss
        self.discriminator.requires_grad_(False)
        gan = self.discriminator(self.features(painted)).mean()
        return loss + adaptive_weight(loss, gan, last_weight) * gan

    def learn(self, images: Tensor, paint: Callable[[], Tensor]) -> None:
        """The discriminator's own step, for which the pictures are painted again."""
        self.discriminator.requires_grad_(True)
        with torch.no_grad():
            maps = [self.features(batch) for batch in (images, paint())]
        real, fake = (self.discriminator(part) for part in maps)
        (real.mean() + fake.mean()).backward()


def _pivot(config: AutoencoderConfig) -> StageParts:
    encoder, decoder = build_encoder(config.model.encoder), PixelDecoder(config.model.decoder)
    replica = PivotReplica(encoder)
    judges = _Judges(config, replica.encoder)

    def run(num: int) -> None:
        images = _images(config, num)
        tokens = encoder(images)
        leaf = tokens.detach().requires_grad_()
        painted = decoder(leaf + torch.empty_like(leaf))  # noised, as in the stage
        loss = judges.image_loss(painted, images)
        if judges.adversarial:
            torch.autograd.grad(loss, leaf, retain_graph=True)  # the pivot weighs against this
        judges.painter_loss(loss, painted, decoder.to_pixels.weight).backward()
        pivot_loss(tokens.detach().requires_grad_(), replica(images)).backward()
        assert leaf.grad is not None
        tokens.backward(leaf.grad)

    def learn(num: int) -> None:
        images = _images(config, num)
        judges.learn(images, lambda: decoder(encoder(images)))

    return StageParts(
        trained={"encoder": encoder, "decoder": decoder, **judges.trained},
        frozen={"pivot replica": replica, **judges.frozen},
        passes=((1.0, run), (1.0, learn)) if judges.adversarial else ((1.0, run),),
        averaged=config.ema_decay > 0,
    )


def _tokenizer_parts(model: RPiAE, *trained: str) -> tuple[dict[str, nn.Module], ...]:
    """The model's trained and frozen parts by name; the latter take no gradients."""
    parts = dict(model.named_children())
    frozen = {name: part for name, part in parts.items() if name not in trained}
    for part in frozen.values():
        part.requires_grad_(False)
    return {name: parts[name] for name in trained}, frozen


def _bridge(config: AutoencoderConfig) -> StageParts:
    model = RPiAE(config.model)
    trained, frozen = _tokenizer_parts(model, "bridge_encoder", "bridge_decoder")

    def run(num: int) -> None:
        images = _images(config, num)
        with torch.no_grad():
            tokens = model.encoder(images)
        posterior = model.bridge_encoder(tokens)
        bridged = model.bridge_decoder(posterior.mean + posterior.logvar.exp())
        distance = (bridged - tokens).square().mean()
        ((model.decoder(bridged) - images).abs().mean() + distance).backward()

    return StageParts(trained, frozen, ((1.0, run),), averaged=config.ema_decay > 0)


def _decoder(config: AutoencoderConfig) -> StageParts:
    model = RPiAE(config.model)
    trained, frozen = _tokenizer_parts(model, "decoder")
    judges = _Judges(config, model.encoder)

    def bridged(images: Tensor) -> Tensor:
        with torch.no_grad():
            return model.bridge_decoder(model.bridge_encoder(model.encoder(images)).mean)

    def run(num: int) -> None:
        images = _images(config, num)
        painted = model.decoder(bridged(images))
        loss = judges.image_loss(painted, images)
        judges.painter_loss(loss, painted, model.decoder.to_pixels.weight).backward()

    def learn(num: int) -> None:
        images = _images(config, num)
        judges.learn(images, lambda: model.decoder(bridged(images)))

    return StageParts(
        trained={**trained, **judges.trained},
        frozen={**frozen, **judges.frozen},
        passes=((1.0, run), (1.0, learn)) if judges.adversarial else ((1.0, run),),
        averaged=config.ema_decay > 0,
    )


def _diffusion(config: DiffusionConfig) -> StageParts:
    model = RPiAE(config.model).requires_grad_(False)
    denoiser = TextDenoiser(config.denoiser)

    def run(num: int, with_source: bool) -> None:
        latents = torch.empty(num, *config.denoiser.latent_shape)
        prompts = torch.empty(num, config.denoiser.max_prompt_tokens, dtype=torch.long)
        context = denoiser.prefill(prompts, latents if with_source else None)
        denoiser.velocity(latents, torch.empty(num), context).square().mean().backward()

    def encode(num: int) -> None:
        with torch.no_grad():
            model.encode(_images(config, num))

    with_source = config.edit_share * (1 - config.source_dropout)
    shares = ((1 - with_source, False), (with_source, True))
    passes = [
        (share, lambda num, source=source: run(num, source)) for share, source in shares if share
    ]
    return StageParts(
        trained={"denoiser": denoiser},
        frozen={"autoencoder": model},
        passes=tuple(passes),
        once=(config.pool_scenes + 2 * config.pool_edits, encode),
        averaged=True,
    )
