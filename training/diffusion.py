"""Stage 4: the denoiser, text-to-image and edits in one model, on frozen latents.

Trains the TextDenoiser, text expert included; the tokenizer is frozen. Loss: squared error of the
velocity, heavier where items are. Run: rpiae train stickers-diffusion
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

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
from training.processes import Processes
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


@dataclass(frozen=True)
class NoisedRows:
    """Rows with corrupted prompts, times t (R,) and noise like the latents."""

    latents: Tensor
    prompts: Tensor
    coverage: Tensor
    source: Tensor | None
    t: Tensor
    noise: Tensor

    def part(self, rows: slice, device: torch.device) -> "NoisedRows":
        """Some of the rows, on a device."""
        source = None if self.source is None else self.source[rows].to(device)
        return NoisedRows(
            self.latents[rows].to(device),
            self.prompts[rows].to(device),
            self.coverage[rows].to(device),
            source,
            self.t[rows].to(device),
            self.noise[rows].to(device),
        )


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


def noise_rows(
    config: DiffusionConfig, rows: Rows, shift: float, generator: torch.Generator
) -> NoisedRows:
    """The rows with what the step draws for them, on the CPU."""
    prompts = corrupt_prompts(rows.prompts, config.text_dropout, config.unknown_share, generator)
    t = sample_timesteps(len(prompts), shift, generator)
    noise = torch.randn(rows.latents.shape, generator=generator)
    return NoisedRows(rows.latents, prompts, rows.coverage, rows.source, t, noise)


def velocity_loss(config: DiffusionConfig, denoiser: TextDenoiser, rows: NoisedRows) -> Tensor:
    """Mean of the weighted squared velocity error of each row: (R,)."""
    context = denoiser.prefill(rows.prompts, rows.source)
    x = interpolate(rows.latents, rows.noise, rows.t)
    velocity = denoiser.velocity(x, rows.t, context)
    error = velocity - target_velocity(rows.latents, rows.noise)
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
    processes: Processes,
) -> dict[str, float]:
    """Accumulate one batch's gradients; mean losses of rows without and with a source.

    Each process computes its rows of the batch; gradients and losses are those of all.
    """
    num_rows = sum(len(rows.latents) for rows in batch)
    drawn = [noise_rows(config, rows, shift, generator) for rows in batch]
    sums = torch.zeros(len(drawn))
    for part in processes.parts():
        for index, rows in enumerate(drawn):
            mine = rows.part(part, processes.device)
            if not len(mine.latents):
                continue
            with processes.autocast():
                losses = velocity_loss(config, denoiser, mine)
            (losses.sum() / num_rows).backward()
            sums[index] += losses.detach().sum().cpu()
    processes.sum_gradients(denoiser.parameters())
    sums = processes.sum(sums)
    names = ["scenes" if rows.source is None else "edits" for rows in drawn]
    means = sums / torch.tensor([len(rows.latents) for rows in drawn])
    total = sum(value / num_rows for value in sums.tolist())
    return {"loss": total, **dict(zip(names, means.tolist(), strict=True))}


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
    processes = Processes(config.compute)
    tokenizer = prompt_tokenizer(config.denoiser.max_prompt_tokens)
    model = RPiAE(config.model)
    load_weights(model, run.before() / "autoencoder.safetensors")
    model.to(processes.device)
    with processes.first_before_others():
        scenes, edits = load_pools(config, run, model, tokenizer)
    torch.manual_seed(config.seed)
    denoiser = TextDenoiser(config.denoiser).to(processes.device)
    ema = Ema(denoiser, config.ema_decay)
    modules = {"denoiser": denoiser, "ema": ema.module, "autoencoder": model}
    optimizer = make_optimizer(denoiser.parameters(), config.optim)
    first, _ = resume(run.directory, modules, optimizer, config)
    shift = default_shift(config.denoiser.latent_shape)
    new_log = partial(RunLog, run.directory, config.name, config.steps, 50, first)
    with new_log() if processes.is_first else nullcontext() as log:
        for step in range(first, config.steps):
            batch = draw_rows(config, scenes, edits, step)
            generator = torch_generator(config.seed, "diffusion-noise", step)
            terms = train_step(config, denoiser, batch, shift, generator, processes)
            update(optimizer, step, config.steps, config.optim, terms, config.seed)
            ema.update(denoiser, step)
            if log is None:
                continue
            log.step(step, config.batch_size, **terms)
            if run.is_due(step + 1):
                save_checkpoint(run.directory, step + 1, modules, optimizer, config)
