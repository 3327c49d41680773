"""A pool of encoded stickers: latents, prompts and weights, computed once and reused by each epoch.

Encoding costs as much as a denoising step of the small model, so a CPU run encodes a fixed pool in
shards on disk; each shard follows from (seed, kind, index) and is written once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.autoencoder import RPiAE
from models.text import PromptTokenizer
from training.batches import random_generator, to_tensor
from training.captions import caption
from training.edits import sample_edit
from training.rendering import patch_labels, render
from training.stickers import World, sample_scene

SHARD_SIZE = 1024
_ENCODE_BATCH = 64


@dataclass(frozen=True)
class LatentPool:
    """latents (n, C, h, w) not yet normalized; prompts (n, T) ids; coverage (n, h, w), the share
    of each latent cell that items cover; source (n, C, h, w) and source_coverage for edits.
    """

    latents: Tensor
    prompts: Tensor
    coverage: Tensor
    source: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def normalize(self, mean: Tensor, std: Tensor) -> "LatentPool":
        """The pool with latents (and sources) normalized per channel, (C,) each."""
        mean, std = mean[:, None, None], std[:, None, None]
        source = None if self.source is None else (self.source - mean) / std
        return LatentPool((self.latents - mean) / std, self.prompts, self.coverage, source)


@torch.inference_mode()
def _encode(model: RPiAE, images: list[np.ndarray]) -> Tensor:
    parts = []
    for begin in range(0, len(images), _ENCODE_BATCH):
        batch = to_tensor(images[begin : begin + _ENCODE_BATCH]).to(model.device)
        parts.append(model.encode(batch).latent_dist.mean.cpu())
    return torch.cat(parts)


def scene_shard(
    model: RPiAE,
    tokenizer: PromptTokenizer,
    world: World,
    rng: np.random.Generator,
    *,
    omit_places: float,
) -> dict[str, Tensor]:
    """Scenes with their captions, of which a share leaves places out."""
    images, prompts, coverage = [], [], []
    for _ in range(SHARD_SIZE):
        scene = sample_scene(rng, world)
        rendering = render(scene)
        images.append(rendering.image)
        prompts.append(caption(scene, rng, omit_places=omit_places))
        coverage.append(patch_labels(scene, rendering).coverage)
    return {
        "latents": _encode(model, images),
        "prompts": tokenizer.encode(prompts),
        "coverage": _coverage_map(coverage),
    }


def edit_shard(
    model: RPiAE, tokenizer: PromptTokenizer, world: World, rng: np.random.Generator
) -> dict[str, Tensor]:
    """Edit triples; coverage is that of source and target items together."""
    sources, targets, prompts, coverage = [], [], [], []
    for _ in range(SHARD_SIZE):
        edit = sample_edit(rng, world)
        source, target = render(edit.source), render(edit.target)
        sources.append(source.image)
        targets.append(target.image)
        prompts.append(edit.instruction)
        before = patch_labels(edit.source, source).coverage
        coverage.append(np.maximum(before, patch_labels(edit.target, target).coverage))
    return {
        "latents": _encode(model, targets),
        "source": _encode(model, sources),
        "prompts": tokenizer.encode(prompts),
        "coverage": _coverage_map(coverage),
    }


def _coverage_map(coverage: list[np.ndarray]) -> Tensor:
    stacked = torch.from_numpy(np.stack(coverage))
    side = int(stacked.shape[1] ** 0.5)
    return stacked.unflatten(1, (side, side))


ShardMaker = Callable[[np.random.Generator], dict[str, Tensor]]
"""What a random generator gives: `scene_shard` or `edit_shard`, their other arguments set."""


def write_shards(
    directory: Path, kind: str, num_samples: int, make: ShardMaker, seed: int
) -> list[Path]:
    """Make the shards that are missing, named after `kind`; paths of all of them."""
    directory.mkdir(parents=True, exist_ok=True)
    num_shards = -(-num_samples // SHARD_SIZE)
    paths = [directory / f"{kind}-{seed}-{index:04}.safetensors" for index in range(num_shards)]
    missing = [(index, path) for index, path in enumerate(paths) if not path.exists()]
    for index, path in track(missing, f"encoding {kind}", disable=not missing):
        rng = random_generator(seed, f"pool-{kind}", index)
        tensors = make(rng)
        partial = path.with_suffix(".partial")
        save_file({key: value.contiguous() for key, value in tensors.items()}, partial)
        partial.replace(path)
    return paths


def read_pool(paths: list[Path]) -> LatentPool:
    """All shards as one pool."""
    shards = [load_file(path) for path in paths]
    joined = {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
    return LatentPool(
        joined["latents"], joined["prompts"], joined["coverage"], joined.get("source")
    )
