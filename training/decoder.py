"""Stage 3: the pixel decoder alone learns to paint from bridged latents.

Encoder and bridge are frozen, so latents stay what the denoiser learned. Losses: L1, a perceptual
term and, where asked for, an adversarial one; tokens are noised only with decoder_noise_tau.
An identity bridge (RAE) lets it start from any encoder's run.
Run: rpiae train stickers-decoder. Source: RPiAE (arXiv 2603.19206), stage 3.
"""

from contextlib import nullcontext
from functools import partial

import torch

from models.autoencoder import RPiAE
from models.weights import load_weights
from training.adversary import Adversary
from training.batches import torch_generator
from training.checkpoint import CheckpointError, resume, save_checkpoint
from training.config import AutoencoderConfig
from training.ema import Averages, weights_file
from training.image_source import image_source
from training.initialise import initialise_decoder
from training.log import RunLog
from training.losses import ALL_ROWS, noise_tokens
from training.optim import make_optimizer, update
from training.perceptual import ImageLoss, make_image_loss
from training.pivot import INIT_IMAGES
from training.processes import Processes
from training.run import Run
from training.sample_grids import reconstruction_grids


def bridged_tokens(model: RPiAE, images: torch.Tensor) -> torch.Tensor:
    """Tokens (B, N, C) after encoder and bridge, from the posterior mean, without gradients."""
    with torch.no_grad():
        tokens: torch.Tensor = model.bridge_decoder(
            model.bridge_encoder(model.encoder(images)).mean
        )
    return tokens


def decoder_inputs(
    config: AutoencoderConfig,
    model: RPiAE,
    images: torch.Tensor,
    generator: torch.Generator,
    rows: slice = ALL_ROWS,
    num_rows: int | None = None,
) -> torch.Tensor:
    """Bridged tokens (B, N, C), noised where the config asks for it; as `noise_tokens`."""
    tokens = bridged_tokens(model, images)
    if config.decoder_noise_tau == 0:
        return tokens
    return noise_tokens(tokens, config.decoder_noise_tau, generator, rows, num_rows)


def decoder_step(
    config: AutoencoderConfig,
    model: RPiAE,
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    image_loss: ImageLoss,
    adversary: Adversary,
    step: int,
    processes: Processes,
) -> dict[str, float]:
    """Accumulate one batch's gradients; returns the terms. images: this process's of the batch."""
    share, rows = len(images) / config.batch_size, processes.parts()[0]
    with processes.autocast():
        tokens = decoder_inputs(config, model, images, generator, rows, config.batch_size)
        painted = model.decoder(tokens).float()
        loss = share * image_loss(painted, images)
        terms = {"image": processes.sum(loss.detach()).item()}
        if adversary.felt(step):
            last_weight = model.decoder.to_pixels.weight
            gan, gan_terms = adversary.painter_term(loss, painted, last_weight, step)
            loss, terms = loss + gan, terms | gan_terms
    loss.backward()
    processes.sum_gradients(model.decoder.parameters())
    return terms


def start_autoencoder(config: AutoencoderConfig, run: Run) -> RPiAE:
    """The autoencoder of a bridge run. An identity bridge has none, and starts from what there is:
    encoder and decoder of a pivot run, or the encoder of stage 0.

    Raises:
        CheckpointError: the run before is missing, or has no decoder and none is to be fitted.
    """
    before = run.before()
    torch.manual_seed(config.seed)  # for a decoder that is fitted, whose blocks start at random
    model = RPiAE(config.model)
    whole = before / weights_file("autoencoder", config.averaged)
    if whole.exists() or config.model.bridge.kind != "identity":
        load_weights(model, whole)
        return model
    load_weights(model.encoder, before / weights_file("encoder", config.averaged))
    decoder = before / weights_file("decoder", config.averaged)
    if decoder.exists():
        load_weights(model.decoder, decoder)
    elif not config.refit_decoder:
        raise CheckpointError(
            f"{config.name} starts from {config.after}, which has no pixel decoder: set "
            "refit_decoder=true, which fits one"
        )
    return model


def main(config: AutoencoderConfig, run: Run) -> None:
    """Train or resume; the result is `autoencoder` with a decoder fitted to the bridge."""
    processes = Processes(config.compute)
    source = image_source(config, run.directory, processes.rows(config.batch_size))
    model = start_autoencoder(config, run)
    model.requires_grad_(False)
    model.decoder.requires_grad_(True)
    processes.place(model)
    image_loss, perceptual = make_image_loss(config)
    torch.manual_seed(config.seed)
    adversary = Adversary(config, model.encoder, processes)
    optimizer = make_optimizer(model.decoder.parameters(), config.optim)
    averages = Averages({"autoencoder": model}, config.ema_decay)
    modules = {"autoencoder": model} | averages.modules | adversary.modules
    optimizers = {"optimizer": optimizer} | adversary.optimizers
    used = {"perceptual": perceptual, "discriminator": adversary.name}
    first, _ = resume(run.directory, modules, optimizers, config)
    grids = reconstruction_grids(config, source, modules)
    if first == 0 and config.refit_decoder:
        images = source.initial(INIT_IMAGES, 3).to(processes.device)
        generator = torch_generator(config.seed, "init-noise", 3)
        initialise_decoder(model.decoder, decoder_inputs(config, model, images, generator), images)
    new_log = partial(RunLog, run.directory, config.name, config.steps, first_step=first)
    with new_log() if processes.is_first else nullcontext() as log:
        for step in range(first, config.steps):
            images = source.batch(step).to(processes.device)
            terms = decoder_step(
                config,
                model,
                images,
                torch_generator(config.seed, "decoder-noise", step),
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
            grids.after(step, log)
            if run.is_due(step + 1):
                save_checkpoint(run.directory, step + 1, modules, optimizers, config, used)
