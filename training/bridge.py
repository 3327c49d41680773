"""Stage 2: the variational bridge alone, between frozen encoder and frozen pixel decoder.

Losses: MSE between bridged tokens (from noised tokens) and clean tokens, KL of the posterior, L1 of
the picture; a draw of the posterior is decoded, or its mean as for the published weights.
Run: rpiae train stickers-bridge. Source: RPiAE (arXiv 2603.19206), stage 2.
"""

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from models.autoencoder import RPiAE
from models.positions import patchify
from models.weights import load_weights
from training.batches import torch_generator
from training.checkpoint import resume, save_checkpoint
from training.config import AutoencoderConfig
from training.ema import Averages, weights_file
from training.image_source import image_source
from training.initialise import initialise_bridge
from training.log import RunLog
from training.losses import kl_mean, noise_tokens
from training.optim import make_optimizer, update
from training.processes import Processes
from training.run import Run
from training.sample_grids import reconstruction_grids

INIT_IMAGES = 1024


def start_bridge(config: AutoencoderConfig, model: RPiAE, images: Tensor, tokens: Tensor) -> None:
    """The closed-form start for images (B, 3, H, W) and their tokens (B * N, C)."""
    weight, patches = config.start_pixel_weight, None
    if weight > 0:
        patches = patchify(2 * images - 1, config.model.decoder.patch_size).flatten(0, 1)
    initialise_bridge(model.bridge_encoder, model.bridge_decoder, tokens, patches, weight)


def bridge_loss(
    config: AutoencoderConfig,
    model: RPiAE,
    images: Tensor,
    generator: torch.Generator,
    processes: Processes,
) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum and terms; the bridge sees noised tokens and is asked for the clean ones.

    images: this process's of the batch; the sum is its share, the terms are those of all.
    """
    rows, num_rows = processes.parts()[0], config.batch_size
    with torch.no_grad():
        tokens = model.encoder(images)
    noised = noise_tokens(tokens, config.noise_tau, generator, rows, num_rows)
    posterior = model.bridge_encoder(noised)
    latents = posterior.mean
    if config.posterior == "sampled":
        noise = torch.randn(num_rows, *latents.shape[1:], generator=generator)[rows]
        latents = latents + (0.5 * posterior.logvar).exp() * noise.to(latents)
    bridged = model.bridge_decoder(latents)
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
    share = len(images) / num_rows
    names = {"loss": loss, **terms}
    means = {key: processes.sum(share * term.detach()).item() for key, term in names.items()}
    return share * loss, means


def main(config: AutoencoderConfig, run: Run) -> None:
    """Train or resume; the result is `autoencoder`, whole."""
    processes = Processes(config.compute)
    source = image_source(config, run.directory, processes.rows(config.batch_size))
    torch.manual_seed(config.seed)
    model = RPiAE(config.model)
    for name in ("encoder", "decoder"):
        file = run.before() / weights_file(name, config.averaged)
        load_weights(getattr(model, name), file)
    model.encoder.requires_grad_(False)
    model.decoder.requires_grad_(False)
    if config.linear_start:
        images = source.initial(INIT_IMAGES, 2)
        with torch.no_grad():
            tokens = model.encoder(images).flatten(0, 1)
        start_bridge(config, model, images, tokens)
    processes.place(model)
    bridge = [*model.bridge_encoder.parameters(), *model.bridge_decoder.parameters()]
    optimizer = make_optimizer(bridge, config.optim)
    averages = Averages({"autoencoder": model}, config.ema_decay)
    modules = {"autoencoder": model} | averages.modules
    first, _ = resume(run.directory, modules, optimizer, config)
    grids = reconstruction_grids(config, source, modules)
    new_log = partial(RunLog, run.directory, config.name, config.steps, first_step=first)
    with new_log() if processes.is_first else nullcontext() as log:
        for step in range(first, config.steps):
            images = source.batch(step).to(processes.device)
            generator = torch_generator(config.seed, "bridge-noise", step)
            with processes.autocast():
                loss, terms = bridge_loss(config, model, images, generator, processes)
            loss.backward()
            processes.sum_gradients(bridge)
            update(optimizer, step, config.steps, config.optim, terms, config.seed)
            averages.update(step)
            if log is None:
                continue
            log.step(step, config.batch_size, **terms)
            grids.after(step, log)
            if run.is_due(step + 1):
                save_checkpoint(run.directory, step + 1, modules, optimizer, config)
