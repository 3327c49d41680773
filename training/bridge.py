"""Stage 2: the variational bridge alone, between frozen encoder and frozen pixel decoder.

Losses: MSE between bridged tokens (from noised tokens) and clean tokens, KL of the posterior, L1 of
the picture. Run: rpiae train stickers-bridge. Source: RPiAE (arXiv 2603.19206), stage 2.
"""

import torch
from torch import Tensor
from torch.nn import functional

from models.autoencoder import RPiAE
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
from training.initialise import initialise_bridge
from training.log import RunLog
from training.losses import kl_mean, noise_tokens
from training.optim import make_optimizer, update
from training.run import Run

INIT_IMAGES = 1024


def bridge_loss(
    config: AutoencoderConfig, model: RPiAE, images: Tensor, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum and terms; the bridge sees noised tokens and is asked for the clean ones."""
    with torch.no_grad():
        tokens = model.encoder(images)
    posterior = model.bridge_encoder(noise_tokens(tokens, config.noise_tau, generator))
    bridged = model.bridge_decoder(posterior.sample(generator))
    terms = {
        "tokens": functional.mse_loss(bridged, tokens),
        "kl": kl_mean(posterior.mean, posterior.logvar),
        "l1": functional.l1_loss(model.decoder(bridged), images),
    }
    loss = (
        config.feature_weight * terms["tokens"]
        + config.kl_weight * terms["kl"]
        + config.l1_weight * terms["l1"]
    )
    return loss, {key: term.item() for key, term in terms.items()}


def main(config: AutoencoderConfig, run: Run) -> None:
    """Train or resume; the result is `autoencoder`, whole."""
    world = tokenizer_world(WORLDS[config.world])
    torch.manual_seed(config.seed)
    model = RPiAE(config.model)
    load_weights(model.encoder, run.before() / "encoder.safetensors")
    load_weights(model.decoder, run.before() / "decoder.safetensors")
    model.encoder.requires_grad_(False)
    model.decoder.requires_grad_(False)
    images = image_batch(world, INIT_IMAGES, random_generator(config.seed, "init", 2))
    with torch.no_grad():
        tokens = model.encoder(images).flatten(0, 1)
    initialise_bridge(model.bridge_encoder, model.bridge_decoder, tokens)
    bridge = [*model.bridge_encoder.parameters(), *model.bridge_decoder.parameters()]
    optimizer = make_optimizer(bridge, config.optim)
    modules = {"autoencoder": model}
    first, _ = resume(run.directory, modules, optimizer, config)
    with RunLog(run.directory, config.name, config.steps) as log:
        for step in range(first, config.steps):
            rng = random_generator(config.seed, "bridge", step)
            images = image_batch(world, config.batch_size, rng)
            generator = torch_generator(config.seed, "bridge-noise", step)
            loss, terms = bridge_loss(config, model, images, generator)
            loss.backward()
            update(optimizer, step, config.steps, config.optim)
            log.step(step, config.batch_size, loss=loss.item(), **terms)
            if run.is_due(step + 1):
                save_checkpoint(run.directory, step + 1, modules, optimizer, config)
