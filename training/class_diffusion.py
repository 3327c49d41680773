"""Stage 4 for classes: a LightningDiT on frozen latents of a folder of classes.

Trains the ClassDenoiser; the tokenizer is frozen and encodes pictures step by step. Loss: squared
error of the velocity. Run: rpiae train rpiae-class
Source: RPiAE (arXiv 2603.19206), which trains LightningDiT (arXiv 2501.01423) this way.
"""

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from models.autoencoder import RPiAE
from models.class_denoiser import ClassDenoiser
from models.transport import interpolate, sample_timesteps, target_velocity
from training.batches import torch_generator
from training.checkpoint import latest_checkpoint, read_state, resume, save_checkpoint
from training.config import ClassDiffusionConfig
from training.data_files import class_collection
from training.datasets import DataError
from training.ema import Ema
from training.files import Files
from training.image_folder import ClassFolder
from training.latent_facts import encode_images, shared_facts
from training.log import RunLog
from training.optim import make_optimizer, update
from training.processes import Processes
from training.rows import own_rows, spread
from training.run import Run
from training.sample_grids import class_grids
from training.start import Start, find_start, frozen_tokenizer, saved_facts


def drop_classes(
    labels: Tensor, num_classes: int, dropout: float, generator: torch.Generator
) -> Tensor:
    """Labels (R,), each with probability `dropout` the null class instead."""
    dropped = torch.rand(len(labels), generator=generator) < dropout
    return torch.where(dropped, num_classes, labels)


def class_step(
    config: ClassDiffusionConfig,
    denoiser: ClassDenoiser,
    latents: Tensor,
    labels: Tensor,
    shift: float,
    generator: torch.Generator,
    processes: Processes,
) -> float:
    """Accumulate a batch's gradients; returns its mean loss.

    latents (B, C, h, w) and labels (B,) of the whole batch; each process computes its rows of it.
    """
    num_rows = len(labels)
    labels = drop_classes(labels, config.denoiser.num_classes, config.class_dropout, generator)
    t = sample_timesteps(num_rows, shift, generator)
    noise = torch.randn(latents.shape, generator=generator)
    total = torch.zeros(1)
    for part in processes.parts():
        own = [values[part].to(processes.device) for values in (latents, noise, t, labels)]
        if not len(own[0]):
            continue
        data, own_noise, times, classes = own
        with processes.autocast():
            velocity = denoiser(interpolate(data, own_noise, times), times, classes)
            loss = (velocity - target_velocity(data, own_noise)).square().mean((1, 2, 3)).sum()
        (loss / num_rows).backward()
        total += loss.detach().cpu()
    processes.sum_gradients(denoiser.parameters())
    return float(processes.sum(total)) / num_rows


def open_classes(config: ClassDiffusionConfig, run: Run) -> ClassFolder:
    """The folder of classes, which must be as many as the denoiser has, and those of the run.

    Raises:
        DataError: they are not.
    """
    collection = class_collection(config.data)
    classes, expected = collection.classes, config.denoiser.num_classes
    if len(classes) != expected:
        raise DataError(
            f"{config.data.path} holds {len(classes)} classes and denoiser.num_classes is "
            f"{expected}: set denoiser.num_classes={len(classes)}"
        )
    checkpoint = latest_checkpoint(run.directory)
    if checkpoint is not None:
        for then, now in zip(read_state(checkpoint)["extra"]["classes"], classes, strict=True):
            if then != now:
                raise DataError(
                    f"{config.data.path} has a class {now} where the run began with {then}: name "
                    "the folders as before, or give the run another name"
                )
    return collection


class ClassRows:
    """Latents and classes of each step, read and encoded by the process that computes them."""

    def __init__(
        self,
        config: ClassDiffusionConfig,
        files: Files,
        model: RPiAE,
        processes: Processes,
    ) -> None:
        self._model, self._processes, self._num_rows = model, processes, config.batch_size
        self._own = own_rows(processes.parts(), config.batch_size)
        self._read = files.reader(
            seed=config.seed,
            stream="class-diffusion",
            batch_size=config.batch_size,
            num_steps=config.steps,
            rows=self._own,
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Latents (B, C, h, w) and labels (B,) of a step; rows of other processes are zeros."""
        batch = self._read(step)
        labels = torch.tensor([int(text) for text in batch.texts])
        if self._own:
            latents = encode_images(self._model, batch.pictures[0], self._processes)
        else:
            latents = torch.zeros(0, *self._model.latent_shape)
        return (
            spread(latents, self._own, self._num_rows),
            spread(labels, self._own, self._num_rows),
        )


def open_rows(
    config: ClassDiffusionConfig,
    run: Run,
    collection: ClassFolder,
    model: RPiAE,
    start: Start | None,
    processes: Processes,
) -> ClassRows:
    """The rows of a run. Sets the model's latent statistics: those of the run's checkpoint, of its
    start, or new ones.
    """
    files = Files(
        collection,
        config.data,
        config.model.image_size,
        directory=run.directory,
        name="data",
        rank=processes.rank,
    )
    checkpoint = latest_checkpoint(run.directory)
    facts = saved_facts(checkpoint) if checkpoint else start and start.facts
    facts = facts or shared_facts(
        files,
        run.directory,
        model,
        processes,
        seed=config.seed,
        num_images=config.statistics_images,
        per_channel=config.per_channel_normalization,
        num_words=None,
    )
    model.set_normalization(facts.mean, facts.std)
    return ClassRows(config, files, model, processes)


def main(config: ClassDiffusionConfig, run: Run) -> None:
    """Train or resume; results are `denoiser` (averaged weights: `ema`) and the statistics."""
    processes = Processes(config.compute)
    collection = open_classes(config, run)
    model = frozen_tokenizer(config, run)
    start = find_start(config, run)
    if start is not None:
        start.check_latents(model)
    processes.place(model)
    source = open_rows(config, run, collection, model, start, processes)
    torch.manual_seed(config.seed)
    denoiser = ClassDenoiser(config.denoiser)
    if start is not None:
        start.load(denoiser)
    processes.place(denoiser)
    ema = Ema(denoiser, config.ema_decay)
    modules = {"denoiser": denoiser, "ema": ema.module, "autoencoder": model}
    optimizer = make_optimizer(denoiser.parameters(), config.optim)
    first, _ = resume(run.directory, modules, optimizer, config)
    grids = class_grids(config, model, ema.module, collection.classes)
    shift = config.shift
    extra = {"classes": collection.classes}
    new_log = partial(RunLog, run.directory, config.name, config.steps, 50, first)
    with new_log() if processes.is_first else nullcontext() as log:
        for step in range(first, config.steps):
            latents, labels = source.batch(step)
            generator = torch_generator(config.seed, "class-diffusion-noise", step)
            loss = class_step(config, denoiser, latents, labels, shift, generator, processes)
            update(optimizer, step, config.steps, config.optim, {"loss": loss}, config.seed)
            ema.update(denoiser, step)
            if log is None:
                continue
            log.step(step, config.batch_size, loss=loss)
            grids.after(step, log)
            if run.is_due(step + 1):
                save_checkpoint(run.directory, step + 1, modules, optimizer, config, extra)
