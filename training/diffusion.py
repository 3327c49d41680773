"""Stage 4: the denoiser, text-to-image and edits in one model, on frozen latents.

Trains the TextDenoiser, its text expert included unless freeze_text; the tokenizer is frozen. Loss:
squared error of the velocity, heavier where stickers are. Data: stickers encoded once, or captions
and edits on disk, encoded step by step. Run: rpiae train stickers-diffusion, rpiae train rpiae-t2i
"""

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from models.autoencoder import RPiAE
from models.text_denoiser import TextDenoiser
from models.transport import interpolate, target_velocity
from training.batches import torch_generator
from training.checkpoint import CheckpointError, latest_checkpoint, resume, save_checkpoint
from training.config import DiffusionConfig
from training.ema import Ema
from training.file_rows import FileRows, FileSources
from training.latent_facts import shared_facts
from training.log import RunLog
from training.optim import make_optimizer, update
from training.pool_rows import PoolRows
from training.pretrained_text import load_text_expert
from training.processes import Processes
from training.prompts import make_tokenizer
from training.rows import NoisedRows, Rows, noise_rows
from training.run import Run
from training.sample_grids import text_grids
from training.start import Start, find_start, frozen_tokenizer, saved_facts


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


class RowSource(Protocol):
    """Where the rows of a step come from."""

    def batch(self, step: int) -> list[Rows]:
        """Rows without a source, then rows with one; only those that there are."""


def open_rows(
    config: DiffusionConfig, run: Run, model: RPiAE, start: Start | None, processes: Processes
) -> tuple[RowSource, list[str] | None]:
    """The rows of a run, and the vocabulary that its data gave, None for any other tokenizer.

    Sets the model's latent statistics: those of the run's checkpoint, of its start, or new ones.

    Raises:
        DataError: the data are missing, hold nothing usable or changed since the run began.
        CheckpointError: the start or the tokenizer does not fit.
    """
    checkpoint = latest_checkpoint(run.directory)
    facts = saved_facts(checkpoint) if checkpoint else start and start.facts
    if config.data.kind == "stickers":
        tokenizer = make_tokenizer(config.denoiser, None, config.text_folder)
        with processes.first_before_others():
            return PoolRows(config, run, model, tokenizer, facts), None
    if start and not facts and config.num_measured_words:
        raise CheckpointError(
            f"start_from {start.name} is a file of weights, without the vocabulary that its text "
            "expert knows: name the run or the bundle that it comes from"
        )
    sources = FileSources(config, run, processes.rank)
    facts = facts or shared_facts(
        sources.first,
        run.directory,
        model,
        processes,
        seed=config.seed,
        num_images=config.statistics_images,
        per_channel=config.per_channel_normalization,
        num_words=config.num_measured_words,
    )
    model.set_normalization(facts.mean, facts.std)
    tokenizer = make_tokenizer(config.denoiser, facts.words, config.text_folder)
    return FileRows(config, sources, model, tokenizer, processes), facts.words


def make_denoiser(config: DiffusionConfig, start: Start | None, is_new: bool) -> TextDenoiser:
    """The denoiser at step 0; a run that is not new loads its weights afterwards."""
    torch.manual_seed(config.seed)
    denoiser = TextDenoiser(config.denoiser)
    if start is not None:
        start.load(denoiser)
    elif config.text_folder is not None and is_new:
        load_text_expert(denoiser, Path(config.text_folder))
    if config.freeze_text:
        denoiser.freeze_text()
    return denoiser


def main(config: DiffusionConfig, run: Run) -> None:
    """Train or resume; results are `denoiser` (averaged weights: `ema`) and the statistics."""
    processes = Processes(config.compute)
    model = frozen_tokenizer(config, run)
    start = find_start(config, run)
    if start is not None:
        start.check_latents(model)
    processes.place(model)
    source, words = open_rows(config, run, model, start, processes)
    is_new = latest_checkpoint(run.directory) is None
    denoiser = make_denoiser(config, start, is_new)
    processes.place(denoiser)
    ema = Ema(denoiser, config.ema_decay)
    modules = {"denoiser": denoiser, "ema": ema.module, "autoencoder": model}
    trained = (p for p in denoiser.parameters() if p.requires_grad)
    optimizer = make_optimizer(trained, config.optim)
    first, _ = resume(run.directory, modules, optimizer, config)
    grids = text_grids(config, model, ema.module, words)
    shift = config.shift
    extra = {"words": words} if words else None
    new_log = partial(RunLog, run.directory, config.name, config.steps, 50, first)
    with new_log() if processes.is_first else nullcontext() as log:
        for step in range(first, config.steps):
            batch = source.batch(step)
            generator = torch_generator(config.seed, "diffusion-noise", step)
            terms = train_step(config, denoiser, batch, shift, generator, processes)
            update(optimizer, step, config.steps, config.optim, terms, config.seed)
            ema.update(denoiser, step)
            if log is None:
                continue
            log.step(step, config.batch_size, **terms)
            grids.after(step, log)
            if run.is_due(step + 1):
                save_checkpoint(run.directory, step + 1, modules, optimizer, config, extra)
