"""Stage 1: encoder and pixel decoder train together, anchored by the pivot replica.

Trains encoder and decoder; the pivot replica is frozen. Losses: L1, a perceptual term and, where
asked for, an adversarial one on images painted from noised tokens; pivot loss on clean tokens.
Run: rpiae train stickers-pivot. Source: RPiAE (arXiv 2603.19206), stage 1.
"""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from models.decoder import PixelDecoder
from models.encoder import build_encoder
from models.pivot import PivotReplica, pivot_loss
from models.weights import load_weights
from training.adversary import Adversary
from training.batches import torch_generator
from training.checkpoint import resume, save_checkpoint
from training.config import AutoencoderConfig
from training.ema import Averages, weights_file
from training.image_source import image_source
from training.initialise import initialise_decoder
from training.log import RunLog
from training.losses import adaptive_weight, noise_tokens
from training.optim import make_optimizer, update
from training.perceptual import ImageLoss, make_image_loss
from training.pretrained import load_pretrained_encoder
from training.processes import Processes
from training.run import Run
from training.sample_grids import reconstruction_grids

INIT_IMAGES = 2048


# The last output weight of a feed-forward, and the scale after it, under the encoders' names.
_NORM_PARAMETERS = {
    "fc2": ("mlp.fc2.weight", "mlp.w3.weight"),
    "layer_scale": ("layer_scale2.lambda1",),
}


def norm_parameter(encoder: nn.Module, at: str) -> Tensor:
    """The parameter of the encoder's last block at which gradient norms are compared.

    Raises:
        ValueError: the encoder has none of that kind.
    """
    endings = _NORM_PARAMETERS[at]
    found = [value for name, value in encoder.named_parameters() if name.endswith(endings)]
    if not found:
        raise ValueError(f"pivot_norms_at {at}: no parameter of the encoder ends in {endings}")
    return found[-1]


def pivot_weight(
    config: AutoencoderConfig,
    encoder: nn.Module,
    tokens: Tensor,
    image_grad: Tensor,
    pivot_grad: Tensor,
    step: int,
    processes: Processes,
) -> float:
    """Weight of the pivot loss: pivot_weight * |image gradient| / |pivot gradient|, capped.

    Both gradients (B, N, C) are those at `tokens`; at a parameter of the encoder they follow from
    these through its last layers alone. The pivot's starts at 0, so the first
    `pivot_warmup_steps` have a constant weight.
    """
    if step < config.pivot_warmup_steps:
        return config.pivot_weight
    if config.pivot_norms_at == "tokens":
        image_norm, pivot_norm = (processes.norm(grad) for grad in (image_grad, pivot_grad))
        ratio = float(image_norm / (pivot_norm + 1e-8))
        return min(config.pivot_weight * ratio, config.pivot_weight_cap)
    # The gradient of (tokens * g).sum() at a parameter is what backpropagating g gives there.
    weight = adaptive_weight(
        (tokens * image_grad).sum(),
        (tokens * pivot_grad).sum(),
        norm_parameter(encoder, config.pivot_norms_at),
        weight=config.pivot_weight,
        cap=config.pivot_weight_cap,
        total=processes.sum,
    )
    return float(weight)


def backward_with_pivot(
    config: AutoencoderConfig,
    encoder: nn.Module,
    tokens: Tensor,
    loss_grad: Tensor,
    image_grad: Tensor,
    anchor: Tensor,
    share: float,
    step: int,
    processes: Processes,
) -> tuple[Tensor, float]:
    """Backpropagate through the encoder what the other losses and the weighted pivot ask for.

    All (B, N, C): loss_grad is the gradient of the other losses at `tokens`, image_grad of those
    that the pivot weighs against; anchor holds the replica's tokens. Returns this process's share
    of the pivot loss, and its weight.
    """
    clean = tokens.detach().requires_grad_()
    with processes.autocast():
        distance = share * pivot_loss(clean, anchor)
    (pivot_grad,) = torch.autograd.grad(distance, clean)
    weight = pivot_weight(config, encoder, tokens, image_grad, pivot_grad, step, processes)
    tokens.backward(loss_grad + weight * pivot_grad)
    return distance, weight


def pivot_step(
    config: AutoencoderConfig,
    encoder: nn.Module,
    decoder: PixelDecoder,
    replica: PivotReplica,
    images: Tensor,
    generator: torch.Generator,
    *,
    image_loss: ImageLoss,
    adversary: Adversary,
    step: int,
    processes: Processes,
) -> dict[str, float]:
    """Accumulate one batch's gradients; returns the terms. images: this process's of the batch.

    All losses meet at the tokens, so their gradients there give the adaptive weight without a
    second backward pass through the encoder.
    """
    rows, share = processes.parts()[0], len(images) / config.batch_size
    with processes.autocast():
        tokens = encoder(images)
        leaf = tokens.detach().requires_grad_()
        noised = noise_tokens(leaf, config.noise_tau, generator, rows, config.batch_size)
        painted = decoder(noised).float()
        loss = share * image_loss(painted, images)
    gan_terms: dict[str, float] = {}
    if adversary.felt(step):
        # The pivot weighs against the images' own losses, without the adversarial one.
        (image_grad,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        with processes.autocast():
            gan, gan_terms = adversary.painter_term(loss, painted, decoder.to_pixels.weight, step)
        (loss + gan).backward()
        assert leaf.grad is not None
    else:
        loss.backward()
        assert leaf.grad is not None
        image_grad = leaf.grad
    with processes.autocast():
        anchor = replica(images)
    distance, weight = backward_with_pivot(
        config, encoder, tokens, leaf.grad, image_grad, anchor, share, step, processes
    )
    processes.sum_gradients([*encoder.parameters(), *decoder.parameters()])
    image, pivot = (processes.sum(part.detach()).item() for part in (loss, distance))
    return {"image": image, "pivot": pivot, "pivot_weight": weight} | gan_terms


def start_encoder(config: AutoencoderConfig, run: Run) -> nn.Module:
    """The pretrained encoder: a published one from its folder, or that of the run before."""
    encoder = build_encoder(config.model.encoder)
    if config.encoder_folder is None:
        load_weights(encoder, run.before() / weights_file("encoder", config.averaged))
    else:
        load_pretrained_encoder(encoder, Path(config.encoder_folder))
    return encoder


def main(config: AutoencoderConfig, run: Run) -> None:
    """Train or resume; the results are `encoder` and `decoder`."""
    processes = Processes(config.compute)
    source = image_source(config, run.directory, processes.rows(config.batch_size))
    torch.manual_seed(config.seed)
    encoder = start_encoder(config, run)
    replica = PivotReplica(encoder)
    decoder = PixelDecoder(config.model.decoder)
    if config.linear_start:
        images = source.initial(INIT_IMAGES, 1)
        generator = torch_generator(config.seed, "init-noise", 1)
        with torch.no_grad():
            noised = noise_tokens(encoder(images), config.noise_tau, generator)
        initialise_decoder(decoder, noised, images)
    for module in (encoder, replica, decoder):
        processes.place(module)
    image_loss, perceptual = make_image_loss(config)
    adversary = Adversary(config, replica.encoder, processes)
    modules = {"encoder": encoder, "decoder": decoder}
    averages = Averages(modules, config.ema_decay)
    modules |= averages.modules | adversary.modules
    optimizer = make_optimizer([*encoder.parameters(), *decoder.parameters()], config.optim)
    optimizers = {"optimizer": optimizer} | adversary.optimizers
    used = {"perceptual": perceptual, "discriminator": adversary.name}
    first, _ = resume(run.directory, modules, optimizers, config)
    grids = reconstruction_grids(config, source, modules)
    new_log = partial(RunLog, run.directory, config.name, config.steps, first_step=first)
    with new_log() if processes.is_first else nullcontext() as log:
        for step in range(first, config.steps):
            images = source.batch(step).to(processes.device)
            generator = torch_generator(config.seed, "pivot-noise", step)
            terms = pivot_step(
                config,
                encoder,
                decoder,
                replica,
                images,
                generator,
                image_loss=image_loss,
                adversary=adversary,
                step=step,
                processes=processes,
            )
            update(optimizer, step, config.steps, config.optim, terms, config.seed)
            averages.update(step)
            if adversary.learns(step):
                with torch.no_grad(), processes.autocast():
                    painted = decoder(encoder(images)).float()
                terms |= adversary.learn(images, painted, step)
            if log is None:
                continue
            log.step(step, config.batch_size, **terms)
            grids.after(step, log)
            if run.is_due(step + 1):
                save_checkpoint(run.directory, step + 1, modules, optimizers, config, used)
