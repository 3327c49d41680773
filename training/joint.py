"""Encoder, bridge and pixel decoder in one stage: what the stages 1 to 3 are compared with.

Trains all three. Losses: L1 and a perceptual term on images painted from a draw of the posterior,
the posterior's KL and, with pivot_weight > 0, the pivot loss on clean tokens. Starts from an
encoder's run, or from scratch without one (after=none), which is a plain KL autoencoder.
Run: rpiae train compare-kl-joint
"""

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from models.autoencoder import RPiAE
from models.encoder import SmallViT
from models.pivot import PivotReplica
from models.weights import load_weights
from training.batches import torch_generator
from training.bridge import start_bridge
from training.checkpoint import resume, save_checkpoint
from training.config import AutoencoderConfig
from training.ema import Averages, weights_file
from training.image_source import ImageSource, image_source
from training.initialise import initialise_decoder, initialise_encoder
from training.log import RunLog
from training.losses import kl_mean, noise_tokens
from training.optim import make_optimizer, update
from training.perceptual import ImageLoss, make_image_loss
from training.pivot import backward_with_pivot
from training.processes import Processes
from training.run import Run
from training.sample_grids import reconstruction_grids

INIT_IMAGES = 2048


def joint_step(
    config: AutoencoderConfig,
    model: RPiAE,
    replica: PivotReplica | None,
    images: Tensor,
    generator: torch.Generator,
    *,
    image_loss: ImageLoss,
    step: int,
    processes: Processes,
) -> dict[str, float]:
    """Accumulate one batch's gradients; returns the terms. images: this process's of the batch.

    As in stage 1 the losses meet at the tokens. The pivot weighs against picture and KL together,
    as these share their way back to there.
    """
    rows, num_rows = processes.parts()[0], config.batch_size
    share = len(images) / num_rows
    with processes.autocast():
        tokens = model.encoder(images)
        leaf = tokens.detach().requires_grad_()
        noised = noise_tokens(leaf, config.noise_tau, generator, rows, num_rows)
        posterior = model.bridge_encoder(noised)
        latents = posterior.mean
        if config.posterior == "sampled":
            noise = torch.randn(num_rows, *latents.shape[1:], generator=generator)[rows]
            latents = latents + (0.5 * posterior.logvar).exp() * noise.to(latents)
        painted = model.decoder(model.bridge_decoder(latents)).float()
        terms = {
            "image": share * image_loss(painted, images),
            "kl": share * kl_mean(posterior.mean, posterior.logvar),
        }
    (terms["image"] + config.kl_weight * terms["kl"]).backward()
    assert leaf.grad is not None
    weight = 0.0
    if replica is None:
        tokens.backward(leaf.grad)
    else:
        with processes.autocast():
            anchor = replica(images)
        terms["pivot"], weight = backward_with_pivot(
            config, model.encoder, tokens, leaf.grad, leaf.grad, anchor, share, step, processes
        )
    processes.sum_gradients(model.parameters())
    means = {name: processes.sum(term.detach()).item() for name, term in terms.items()}
    return means if replica is None else means | {"pivot_weight": weight}


def initialise(config: AutoencoderConfig, model: RPiAE, source: ImageSource) -> None:
    """The closed-form starts of stages 0 to 2; that of the encoder only where it is from scratch.

    Raises:
        ValueError: the encoder is a published one, and no run is named to start from.
    """
    images = source.initial(INIT_IMAGES, 1)
    if config.after is None:
        if not isinstance(model.encoder, SmallViT):
            raise ValueError(
                "linear_start: only a small ViT has a closed-form start, and model.encoder.kind is "
                f"{config.model.encoder.kind}; set after, or linear_start=false"
            )
        initialise_encoder(model.encoder, images, config.num_components)
    generator = torch_generator(config.seed, "init-noise", 1)
    with torch.no_grad():
        tokens = model.encoder(images)
        if config.model.bridge.kind != "identity":
            start_bridge(config, model, images, tokens.flatten(0, 1))
        noised = noise_tokens(tokens, config.noise_tau, generator)
        bridged = model.bridge_decoder(model.bridge_encoder(noised).mean)
    initialise_decoder(model.decoder, bridged, images)


def main(config: AutoencoderConfig, run: Run) -> None:
    """Train or resume; the result is `autoencoder`, whole."""
    processes = Processes(config.compute)
    source = image_source(config, run.directory, processes.rows(config.batch_size))
    torch.manual_seed(config.seed)
    model = RPiAE(config.model)
    if config.after is not None:
        file = run.before() / weights_file("encoder", config.averaged)
        load_weights(model.encoder, file)
    replica = PivotReplica(model.encoder) if config.pivot_weight > 0 else None
    if config.linear_start:
        initialise(config, model, source)
    for module in (model, replica):
        if module is not None:
            processes.place(module)
    image_loss, perceptual = make_image_loss(config)
    averages = Averages({"autoencoder": model}, config.ema_decay)
    modules = {"autoencoder": model} | averages.modules
    optimizer = make_optimizer(model.parameters(), config.optim)
    first, _ = resume(run.directory, modules, optimizer, config)
    grids = reconstruction_grids(config, source, modules)
    new_log = partial(RunLog, run.directory, config.name, config.steps, first_step=first)
    with new_log() if processes.is_first else nullcontext() as log:
        for step in range(first, config.steps):
            images = source.batch(step).to(processes.device)
            generator = torch_generator(config.seed, "joint-noise", step)
            terms = joint_step(
                config,
                model,
                replica,
                images,
                generator,
                image_loss=image_loss,
                step=step,
                processes=processes,
            )
            update(optimizer, step, config.steps, config.optim, terms, config.seed)
            averages.update(step)
            if log is None:
                continue
            log.step(step, config.batch_size, **terms)
            grids.after(step, log)
            if run.is_due(step + 1):
                used = {"perceptual": perceptual}
                save_checkpoint(run.directory, step + 1, modules, optimizer, config, used)
