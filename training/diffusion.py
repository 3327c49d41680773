"""Stage 4: the denoiser, text-to-image and edits in one model, on frozen latents.

Trains the TextDenoiser, text expert included; the tokenizer is frozen. Loss: squared error of the
velocity, heavier where items are. Run: rpiae train stickers-diffusion
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.autoencoder import RPiAE
from models.text import END_ID, PAD_ID, UNKNOWN_ID, PromptTokenizer
from models.text_denoiser import TextDenoiser
from models.transport import default_shift, interpolate, sample_timesteps, target_velocity
from models.weights import load_weights
from training.batches import WORLDS, random_generator, torch_generator
from training.checkpoint import resume, save_checkpoint
from training.config import DiffusionConfig
from training.ema import Ema
from training.latents import LatentPool, read_pool, write_shards
from training.log import RunLog
from training.optim import make_optimizer, update
from training.pretrain import prompt_tokenizer
from training.run import Run


@dataclass(frozen=True)
class Rows:
    """Training rows that share one form of context: target latents, prompt ids, weights, source."""

    latents: Tensor
    prompts: Tensor
    coverage: Tensor
    source: Tensor | None

    @staticmethod
    def of(pool: LatentPool, index: Tensor, with_source: bool) -> "Rows":
        """Some rows of a pool, with or without their sources."""
        source = pool.source[index] if with_source and pool.source is not None else None
        return Rows(pool.latents[index], pool.prompts[index], pool.coverage[index], source)


def null_prompts(prompts: Tensor) -> Tensor:
    """Ids of the empty prompt, one row per row of prompts (R, T)."""
    empty = torch.full_like(prompts, PAD_ID)
    empty[:, 0] = END_ID
    return empty


def corrupt_prompts(
    prompts: Tensor, dropout: float, unknown: float, generator: torch.Generator
) -> Tensor:
    """Drop whole prompts with probability `dropout`, single words to <unk> with `unknown`."""
    words = torch.rand(prompts.shape, generator=generator) < unknown
    prompts = torch.where(words & (prompts > END_ID), UNKNOWN_ID, prompts)
    dropped = torch.rand(len(prompts), 1, generator=generator) < dropout
    return torch.where(dropped, null_prompts(prompts), prompts)


def draw_rows(
    config: DiffusionConfig, scenes: LatentPool, edits: LatentPool, step: int
) -> list[Rows]:
    """This step's rows: scenes without source, edits with it, edits whose source was dropped."""
    rng = random_generator(config.seed, "diffusion", step)
    num_edits = round(config.edit_share * config.batch_size)
    edit_index = torch.from_numpy(rng.integers(len(edits), size=num_edits))
    scene_index = torch.from_numpy(rng.integers(len(scenes), size=config.batch_size - num_edits))
    kept = torch.from_numpy(rng.random(num_edits) >= config.source_dropout)
    plain = [Rows.of(scenes, scene_index, False), Rows.of(edits, edit_index[~kept], False)]
    without = Rows(
        torch.cat([rows.latents for rows in plain]),
        torch.cat([rows.prompts for rows in plain]),
        torch.cat([rows.coverage for rows in plain]),
        None,
    )
    rows = [without, Rows.of(edits, edit_index[kept], True)]
    return [part for part in rows if len(part.latents)]


def velocity_loss(
    config: DiffusionConfig,
    denoiser: TextDenoiser,
    rows: Rows,
    shift: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean over rows of the weighted squared velocity error: (R,)."""
    prompts = corrupt_prompts(rows.prompts, config.text_dropout, config.unknown_share, generator)
    t = sample_timesteps(len(prompts), shift, generator)
    noise = torch.randn(rows.latents.shape, generator=generator)
    context = denoiser.prefill(prompts, rows.source)
    x = interpolate(rows.latents, noise, t)
    error = denoiser.velocity(x, t, context) - target_velocity(rows.latents, noise)
    # An item counts for the whole denoiser token it touches, not for its exact cells.
    patch = config.denoiser.patch_size
    touched = functional.max_pool2d(rows.coverage[:, None], patch) > 0
    touched = touched.repeat_interleave(patch, -1).repeat_interleave(patch, -2)
    weight = 1 + (config.item_weight - 1) * touched
    return (weight * error.square()).mean((1, 2, 3))


def train_step(
    config: DiffusionConfig,
    denoiser: TextDenoiser,
    batch: list[Rows],
    shift: float,
    generator: torch.Generator,
) -> dict[str, float]:
    """Accumulate one batch's gradients; mean losses of rows without and with a source."""
    num_rows = sum(len(rows.latents) for rows in batch)
    terms, total = {}, 0.0
    for rows in batch:
        losses = velocity_loss(config, denoiser, rows, shift, generator)
        (losses.sum() / num_rows).backward()
        terms["scenes" if rows.source is None else "edits"] = losses.mean().item()
        total += losses.sum().item() / num_rows
    return {"loss": total, **terms}


def latent_statistics(latents: Tensor, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Mean (C,) per channel, and std (C,): per channel, or one value for all.

    One scale keeps the channels' relative sizes, so that fine detail does not weigh as much as
    layout in the loss.
    """
    mean = latents.mean((0, 2, 3))
    centred = latents - mean[:, None, None]
    if per_channel:
        return mean, centred.square().mean((0, 2, 3)).sqrt()
    return mean, centred.square().mean().sqrt().expand_as(mean)


def load_pools(
    config: DiffusionConfig, run: Run, model: RPiAE, tokenizer: PromptTokenizer
) -> tuple[LatentPool, LatentPool]:
    """Scenes and edits, encoded now or earlier, normalized; sets the model's statistics."""
    pools = []
    for kind, count in (("scenes", config.pool_scenes), ("edits", config.pool_edits)):
        paths = write_shards(
            run.directory / "latents",
            kind,
            count,
            model,
            tokenizer,
            WORLDS[config.world],
            config.seed,
        )
        pools.append(read_pool(paths))
    mean, std = latent_statistics(pools[0].latents, config.per_channel_normalization)
    model.set_normalization(mean.tolist(), std.tolist())
    scenes, edits = (pool.normalize(mean, std) for pool in pools)
    return scenes, edits


def main(config: DiffusionConfig, run: Run) -> None:
    """Train or resume; results are `denoiser` (averaged weights: `ema`) and the statistics."""
    tokenizer = prompt_tokenizer(config.denoiser.max_prompt_tokens)
    model = RPiAE(config.model)
    load_weights(model, run.before() / "autoencoder.safetensors")
    scenes, edits = load_pools(config, run, model, tokenizer)
    torch.manual_seed(config.seed)
    denoiser = TextDenoiser(config.denoiser)
    ema = Ema(denoiser, config.ema_decay)
    modules = {"denoiser": denoiser, "ema": ema.module, "autoencoder": model}
    optimizer = make_optimizer(denoiser.parameters(), config.optim)
    first, _ = resume(run.directory, modules, optimizer, config)
    shift = default_shift(config.denoiser.latent_shape)
    with RunLog(run.directory, config.name, config.steps, every=50) as log:
        for step in range(first, config.steps):
            batch = draw_rows(config, scenes, edits, step)
            generator = torch_generator(config.seed, "diffusion-noise", step)
            terms = train_step(config, denoiser, batch, shift, generator)
            update(optimizer, step, config.steps, config.optim)
            ema.update(denoiser, step)
            log.step(step, config.batch_size, **terms)
            if run.is_due(step + 1):
                save_checkpoint(run.directory, step + 1, modules, optimizer, config)
