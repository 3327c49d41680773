"""Stage 3: the pixel decoder alone learns to paint from bridged latents.

Encoder and bridge are frozen, so latents stay what the denoiser learned. Losses: L1, a perceptual
term and, where asked for, an adversarial one; tokens are not noised.
Run: rpiae train stickers-decoder. Source: RPiAE (arXiv 2603.19206), stage 3.
"""

from contextlib import nullcontext
from functools import partial

import torch

from models.autoencoder import RPiAE
from models.weights import load_weights
from training.adversary import Adversary
from training.checkpoint import resume, save_checkpoint
from training.config import AutoencoderConfig
from training.ema import Averages, weights_file
from training.image_source import image_source
from training.initialise import initialise_decoder
from training.log import RunLog
from training.optim import make_optimizer, update
from training.perceptual import ImageLoss, make_image_loss
from training.pivot import INIT_IMAGES
from training.processes import Processes
from training.run import Run


def bridged_tokens(model: RPiAE, images: torch.Tensor) -> torch.Tensor:
    """Tokens (B, N, C) after encoder and bridge, from the posterior mean, without gradients."""
    with torch.no_grad():
        tokens: torch.Tensor = model.bridge_decoder(
            model.bridge_encoder(model.encoder(images)).mean
        )
    return tokens


def decoder_step(
    config: AutoencoderConfig,
    model: RPiAE,
    images: torch.Tensor,
    *,
    image_loss: ImageLoss,
    adversary: Adversary,
    step: int,
    processes: Processes,
) -> dict[str, float]:
    """Accumulate one batch's gradients; returns the terms. images: this process's of the batch."""
    share = len(images) / config.batch_size
    with processes.autocast():
        painted = model.decoder(bridged_tokens(model, images)).float()
        loss = share * image_loss(painted, images)
        terms = {"image": processes.sum(loss.detach()).item()}
        if adversary.felt(step):
            last_weight = model.decoder.to_pixels.weight
            gan, gan_terms = adversary.painter_term(loss, painted, last_weight, step)
            loss, terms = loss + gan, terms | gan_terms
    loss.backward()
    processes.sum_gradients(model.decoder.parameters())
    return terms


def main(config: AutoencoderConfig, run: Run) -> None:
    """Train or resume; the result is `autoencoder` with a decoder fitted to the bridge."""
    processes = Processes(config.compute)
    source = image_source(config, run.directory, processes.rows(config.batch_size))
    model = RPiAE(config.model)
    load_weights(model, run.before() / weights_file("autoencoder", config.averaged))
    model.requires_grad_(False)
    model.decoder.requires_grad_(True)
    model.to(processes.device)
    image_loss, perceptual = make_image_loss(config)
    torch.manual_seed(config.seed)
    adversary = Adversary(config, model.encoder, processes)
    optimizer = make_optimizer(model.decoder.parameters(), config.optim)
    averages = Averages({"autoencoder": model}, config.ema_decay)
    modules = {"autoencoder": model} | averages.modules | adversary.modules
    optimizers = {"optimizer": optimizer} | adversary.optimizers
    used = {"perceptual": perceptual, "discriminator": adversary.name}
    first, _ = resume(run.directory, modules, optimizers, config)
    if first == 0 and config.refit_decoder:
        images = source.initial(INIT_IMAGES, 3).to(processes.device)
        initialise_decoder(model.decoder, bridged_tokens(model, images), images)
    new_log = partial(RunLog, run.directory, config.name, config.steps, first_step=first)
    with new_log() if processes.is_first else nullcontext() as log:
        for step in range(first, config.steps):
            images = source.batch(step).to(processes.device)
            terms = decoder_step(
                config,
                model,
                images,
                image_loss=image_loss,
                adversary=adversary,
                step=step,
                processes=processes,
            )
            update(optimizer, step, config.steps, config.optim, terms, config.seed)
            averages.update(step)
            if adversary.learns(step):
                with torch.no_grad(), processes.autocast():
                    painted = model.decoder(bridged_tokens(model, images)).float()
                terms |= adversary.learn(images, painted, step)
            if log is None:
                continue
            log.step(step, config.batch_size, **terms)
            if run.is_due(step + 1):
                save_checkpoint(run.directory, step + 1, modules, optimizers, config, used)
