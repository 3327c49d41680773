"""Stage 3: the pixel decoder alone learns to paint from bridged latents.

Encoder and bridge are frozen, so latents stay what the denoiser learned. Losses: L1 + gradient L1.
Run: rpiae train stickers-decoder. Source: RPiAE (arXiv 2603.19206), stage 3.
"""

import torch

from models.autoencoder import RPiAE
from models.weights import load_weights
from training.batches import WORLDS, image_batch, random_generator, tokenizer_world
from training.checkpoint import resume, save_checkpoint
from training.config import AutoencoderConfig
from training.initialise import initialise_decoder
from training.log import RunLog
from training.optim import make_optimizer, update
from training.pivot import INIT_IMAGES, image_loss
from training.run import Run


def bridged_tokens(model: RPiAE, images: torch.Tensor) -> torch.Tensor:
    """Tokens (B, N, C) after encoder and bridge, from the posterior mean, without gradients."""
    with torch.no_grad():
        tokens: torch.Tensor = model.bridge_decoder(
            model.bridge_encoder(model.encoder(images)).mean
        )
    return tokens


def main(config: AutoencoderConfig, run: Run) -> None:
    """Train or resume; the result is `autoencoder` with a decoder fitted to the bridge."""
    world = tokenizer_world(WORLDS[config.world])
    model = RPiAE(config.model)
    load_weights(model, run.before() / "autoencoder.safetensors")
    optimizer = make_optimizer(model.decoder.parameters(), config.optim)
    modules = {"autoencoder": model}
    first, _ = resume(run.directory, modules, optimizer, config)
    if first == 0 and config.refit_decoder:
        images = image_batch(world, INIT_IMAGES, random_generator(config.seed, "init", 3))
        initialise_decoder(model.decoder, bridged_tokens(model, images), images)
    with RunLog(run.directory, config.name, config.steps) as log:
        for step in range(first, config.steps):
            rng = random_generator(config.seed, "decoder", step)
            images = image_batch(world, config.batch_size, rng)
            loss = image_loss(config, model.decoder(bridged_tokens(model, images)), images)
            loss.backward()
            update(optimizer, step, config.steps, config.optim)
            log.step(step, config.batch_size, image=loss.item())
            if run.is_due(step + 1):
                save_checkpoint(run.directory, step + 1, modules, optimizer, config)
