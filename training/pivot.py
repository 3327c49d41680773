"""Stage 1: encoder and pixel decoder train together, anchored by the pivot replica.

Trains encoder and decoder; the pivot replica is frozen. Losses: L1 + gradient L1 on images painted
from noised tokens, pivot loss on clean tokens. Run: rpiae train stickers-pivot
Source: RPiAE (arXiv 2603.19206); here the adaptive weight compares gradients at the tokens.
"""

import torch
from torch import Tensor
from torch.nn import functional

from models.decoder import PixelDecoder
from models.encoder import SmallViT
from models.pivot import PivotReplica, pivot_loss
from models.weights import load_weights
from training.batches import (
    WORLDS,
    image_batch,
    random_generator,
    tokenizer_world,
    torch_generator,
)
from training.checkpoint import resume, save_checkpoint
from training.config import AutoencoderConfig
from training.initialise import initialise_decoder
from training.log import RunLog
from training.losses import gradient_loss, noise_tokens
from training.optim import make_optimizer, update
from training.run import Run

INIT_IMAGES = 2048


def image_loss(config: AutoencoderConfig, images: Tensor, targets: Tensor) -> Tensor:
    """L1 plus gradient L1 of images in [0, 1]."""
    l1 = functional.l1_loss(images, targets)
    return l1 + config.gradient_weight * gradient_loss(images, targets)


def adaptive_weight(image_grad: Tensor, pivot_grad: Tensor, config: AutoencoderConfig) -> float:
    """pivot_weight * |image gradient| / |pivot gradient|, capped: the latter starts at 0."""
    ratio = float(image_grad.norm() / (pivot_grad.norm() + 1e-8))
    return min(config.pivot_weight * ratio, config.pivot_weight_cap)


def pivot_step(
    config: AutoencoderConfig,
    encoder: SmallViT,
    decoder: PixelDecoder,
    replica: PivotReplica,
    images: Tensor,
    generator: torch.Generator,
) -> dict[str, float]:
    """Accumulate one batch's gradients; returns the terms.

    Both losses meet at the tokens, so their gradients there give the adaptive weight without a
    second backward pass through the encoder.
    """
    tokens = encoder(images)
    leaf = tokens.detach().requires_grad_()
    painted = decoder(noise_tokens(leaf, config.noise_tau, generator))
    loss = image_loss(config, painted, images)
    loss.backward()
    assert leaf.grad is not None
    clean = tokens.detach().requires_grad_()
    distance = pivot_loss(clean, replica(images))
    (pivot_grad,) = torch.autograd.grad(distance, clean)
    weight = adaptive_weight(leaf.grad, pivot_grad, config)
    tokens.backward(leaf.grad + weight * pivot_grad)
    return {"image": loss.item(), "pivot": distance.item(), "pivot_weight": weight}


def main(config: AutoencoderConfig, run: Run) -> None:
    """Train or resume; the results are `encoder` and `decoder`."""
    world = tokenizer_world(WORLDS[config.world])
    torch.manual_seed(config.seed)
    encoder = SmallViT(config.model.encoder)
    load_weights(encoder, run.before() / "encoder.safetensors")
    replica = PivotReplica(encoder)
    decoder = PixelDecoder(config.model.decoder)
    images = image_batch(world, INIT_IMAGES, random_generator(config.seed, "init", 1))
    generator = torch_generator(config.seed, "init-noise", 1)
    with torch.no_grad():
        noised = noise_tokens(encoder(images), config.noise_tau, generator)
    initialise_decoder(decoder, noised, images)
    modules = {"encoder": encoder, "decoder": decoder}
    optimizer = make_optimizer([*encoder.parameters(), *decoder.parameters()], config.optim)
    first, _ = resume(run.directory, modules, optimizer, config)
    with RunLog(run.directory, config.name, config.steps) as log:
        for step in range(first, config.steps):
            rng = random_generator(config.seed, "pivot", step)
            images = image_batch(world, config.batch_size, rng)
            generator = torch_generator(config.seed, "pivot-noise", step)
            terms = pivot_step(config, encoder, decoder, replica, images, generator)
            update(optimizer, step, config.steps, config.optim)
            log.step(step, config.batch_size, **terms)
            if run.is_due(step + 1):
                save_checkpoint(run.directory, step + 1, modules, optimizer, config)
