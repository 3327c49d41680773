"""Sample grids: what a run paints while it trains, the same pictures each time.

Tokenizers show inputs beside reconstructions; denoisers show prompts, and edits with their sources,
painted with the averaged weights. Nothing here draws from the random numbers of training or changes
a weight, so a run with grids ends with the weights of one without.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from models.autoencoder import RPiAE
from models.bundle import Denoiser
from models.sampler import PromptEncoder, SamplingOptions, generate_latents
from training.batches import WORLDS, to_tensor
from training.config import ClassDiffusionConfig, DiffusionConfig, RunConfig
from training.contact_sheet import SheetEntry, sheet_image
from training.editing import EditCase, held_out_edits
from training.following import PromptCase, categories, held_out_prompts
from training.image_source import ImageSource
from training.log import RunLog
from training.metrics import psnr
from training.painting import Picture, to_pictures
from training.prompts import make_tokenizer

NUM_PICTURES = 8
_COLUMNS = 4
# The same in all runs, so that these can be laid side by side; no evaluation uses its pictures.
_SEED = 715_517
_NUM_STEPS = 20
_GUIDANCE_SCALE = 3.0

Rows = list[list[SheetEntry]]


class SampleGrids:
    """Pictures of a run every `samples_every` steps and after the last one; 0: none."""

    def __init__(self, config: RunConfig, draw: Callable[[], Rows]) -> None:
        self._every, self._num_steps, self._draw = config.samples_every, config.steps, draw

    def after(self, step: int, log: RunLog) -> None:
        """Draw and record a grid if it is due after `step` (0-based); for the first process."""
        done = step + 1
        if not self._every or (done % self._every and done < self._num_steps):
            return
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            log.grid(done, sheet_image(self._draw()))


def _rows(entries: Sequence[SheetEntry]) -> Rows:
    return [list(entries[i : i + _COLUMNS]) for i in range(0, len(entries), _COLUMNS)]


def _averaged(modules: Mapping[str, nn.Module], name: str) -> nn.Module:
    return modules.get(f"{name}_ema", modules[name])


def reconstruction_grids(
    config: RunConfig, source: ImageSource, modules: Mapping[str, nn.Module]
) -> SampleGrids:
    """Of a tokenizer: input and reconstruction, with its PSNR, by averaged weights if there are.

    Args:
        modules: `autoencoder`, or `encoder` and `decoder`; averages are named `<name>_ema`.
    """
    kept: list[Tensor] = []

    def paint(images: Tensor) -> Tensor:
        if "autoencoder" not in modules:
            encoder, decoder = (_averaged(modules, name) for name in ("encoder", "decoder"))
            return cast(Tensor, decoder(encoder(images)))
        model = cast(RPiAE, _averaged(modules, "autoencoder"))
        posterior = model.bridge_encoder(model.encoder(images))
        return cast(Tensor, model.decoder(model.bridge_decoder(posterior.mean)))

    def draw() -> Rows:
        if not kept:  # other images than any step's, and than those of the closed-form starts
            kept.append(source.initial(NUM_PICTURES, 0))
        images = kept[0]
        device = next(next(iter(modules.values())).parameters()).device
        painted = paint(images.to(device)).float().clamp(0, 1).cpu()
        pairs = zip(to_pictures(images), to_pictures(painted), strict=True)
        values = psnr(painted, images).tolist()
        return _rows(
            [
                SheetEntry(pictures=pair, text=f"{value:.1f} dB", right=True)
                for pair, value in zip(pairs, values, strict=True)
            ]
        )

    return SampleGrids(config, draw)


def _paint(
    model: RPiAE,
    denoiser: Denoiser,
    shift: float,
    tokenizer: PromptEncoder,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sources: Sequence[Picture] | None = None,
) -> list[Picture]:
    """Pictures of prompts, or of edits of `sources`; as `BundlePainter` with 20 steps, scale 3."""
    options = SamplingOptions(
        num_steps=_NUM_STEPS,
        shift=shift,
        guidance_scale=_GUIDANCE_SCALE,
    )
    latents = None
    if sources is not None:
        latents = model.encode(to_tensor(list(sources)).to(model.device)).latent_dist.mean
    painted = generate_latents(denoiser, tokenizer, prompts, seeds, options, source_latents=latents)
    return to_pictures(model.decode(painted).sample)


def _text_cases(config: DiffusionConfig) -> tuple[list[tuple[str, int]], list[EditCase]]:
    """Prompts with their noise seeds, and edits, as far as the run learns them."""
    if config.data.kind != "stickers":
        given = [text.strip() for text in config.sample_prompts.split("|")]
        return [(text, _SEED + number) for number, text in enumerate(given)], []
    world = WORLDS[config.world]
    prompts: list[PromptCase] = []
    if config.edit_share < 1:
        kinds = categories(world)
        for kind in kinds:
            own = replace(kind, name=f"{kind.name}-samples")  # another random stream
            prompts += held_out_prompts(own, max(1, NUM_PICTURES // len(kinds)), _SEED)
    edits = [held_out_edits(world, kind, 1, _SEED)[0] for kind in world.edit_kinds]
    return [(case.prompt, case.seed) for case in prompts], edits if config.edit_share > 0 else []


def text_grids(
    config: DiffusionConfig, model: RPiAE, denoiser: nn.Module, words: list[str] | None
) -> SampleGrids:
    """Of a text denoiser: held-out prompts and one edit of each kind; of files `sample_prompts`.

    words: the vocabulary, if the run's data gave it.
    """
    tokenizers: list[PromptEncoder] = []

    def draw() -> Rows:
        if not tokenizers:
            tokenizers.append(make_tokenizer(config.denoiser, words, config.text_folder))
        painter = partial(_paint, model, cast(Denoiser, denoiser), config.shift, tokenizers[0])
        prompts, edits = _text_cases(config)
        rows: Rows = []
        if prompts:
            texts, seeds = (list(column) for column in zip(*prompts, strict=True))
            pictures = painter(texts, seeds)
            rows += _rows(
                [
                    SheetEntry(pictures=(picture,), text=text, right=True)
                    for picture, text in zip(pictures, texts, strict=True)
                ]
            )
        if edits:
            texts, sources = [e.edit.instruction for e in edits], [e.source for e in edits]
            seeds = [case.seed for case in edits]
            results = painter(texts, seeds, sources)
            rows += _rows(
                [
                    SheetEntry(pictures=(source, result), text=text, right=True)
                    for text, source, result in zip(texts, sources, results, strict=True)
                ]
            )
        return rows

    return SampleGrids(config, draw)


class _Labels:
    """Numbers of classes as prompts; the empty one is the null class."""

    def __init__(self, num_classes: int) -> None:
        self._null = num_classes

    def encode(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([int(text) if text else self._null for text in prompts])


def class_grids(
    config: ClassDiffusionConfig, model: RPiAE, denoiser: nn.Module, classes: Sequence[str]
) -> SampleGrids:
    """Of a class denoiser: some classes, evenly spread."""

    def draw() -> Rows:
        count = min(NUM_PICTURES, len(classes))
        labels = [number * len(classes) // count for number in range(count)]
        seeds = [_SEED + label for label in labels]
        painter = partial(
            _paint, model, cast(Denoiser, denoiser), config.shift, _Labels(len(classes))
        )
        pictures = painter([str(label) for label in labels], seeds)
        return _rows(
            [
                SheetEntry(pictures=(picture,), text=classes[label], right=True)
                for picture, label in zip(pictures, labels, strict=True)
            ]
        )

    return SampleGrids(config, draw)
