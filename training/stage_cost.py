"""What a stage holds in memory and computes in a step, built on the meta device.

The passes are those of the stages without their random draws and augmentations: products and what
autograd keeps are the same. Losses that begin later in a run count as if they always acted.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.autoencoder import RPiAE
from models.decoder import PixelDecoder
from models.discriminator import DinoConfig, DinoEncoder, Discriminator, FrozenFeatures
from models.encoder import build_encoder
from models.pivot import PivotReplica, pivot_loss
from training.config import (
    AutoencoderConfig,
    ClassDiffusionConfig,
    DiffusionConfig,
    PretrainConfig,
    RunConfig,
)
from training.denoiser_cost import class_denoiser_parts, text_denoiser_parts
from training.losses import adaptive_weight, gradient_loss
from training.perceptual import Lpips
from training.pretrain import PretrainHeads, prompt_tokenizer
from training.stage_parts import StageParts


def stage_parts(config: RunConfig) -> StageParts:
    """Builds the stage's modules on the meta device.

    Raises:
        ValueError: no such stage is known here.
    """
    with torch.device("meta"):
        if isinstance(config, PretrainConfig):
            return _pretrain(config)
        if isinstance(config, DiffusionConfig):
            return text_denoiser_parts(config)
        if isinstance(config, ClassDiffusionConfig):
            return class_denoiser_parts(config)
        builders = {"pivot": _pivot, "bridge": _bridge, "decoder": _decoder, "joint": _joint}
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


def _joint(config: AutoencoderConfig) -> StageParts:
    model = RPiAE(config.model)
    trained = dict(model.named_children())
    replica = PivotReplica(model.encoder) if config.pivot_weight > 0 else None
    judges = _Judges(config, model.encoder)

    def run(num: int) -> None:
        images = _images(config, num)
        tokens = model.encoder(images)
        leaf = tokens.detach().requires_grad_()
        posterior = model.bridge_encoder(leaf + torch.empty_like(leaf))
        bridged = model.bridge_decoder(posterior.mean + posterior.logvar.exp())
        judges.image_loss(model.decoder(bridged), images).backward()
        if replica is not None:
            pivot_loss(tokens.detach().requires_grad_(), replica(images)).backward()
        assert leaf.grad is not None
        tokens.backward(leaf.grad)

    frozen = {} if replica is None else {"pivot replica": replica}
    return StageParts(
        trained={name: part for name, part in trained.items() if list(part.parameters())},
        frozen=frozen | judges.frozen,
        passes=((1.0, run),),
        averaged=config.ema_decay > 0,
    )
