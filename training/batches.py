"""Batches of stickers as tensors; every batch follows from (seed, stream, step) alone."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.captions import caption
from training.rendering import PatchLabels, patch_labels, render
from training.stickers import (
    COUNTED_WORLD,
    FULL_WORLD,
    SHAPES_WORLD,
    Scene,
    World,
    sample_scene,
)

WORLDS = {"shapes": SHAPES_WORLD, "counted": COUNTED_WORLD, "full": FULL_WORLD}


def random_generator(seed: int, stream: str, step: int) -> np.random.Generator:
    """Generator of one step's data; streams with different names are independent."""
    return np.random.default_rng([seed, *stream.encode(), step])


def torch_generator(seed: int, stream: str, step: int) -> torch.Generator:
    """Generator of one step's noise, on the CPU."""
    numbers = random_generator(seed, stream, step)
    return torch.Generator("cpu").manual_seed(int(numbers.integers(2**63)))


def to_tensor(images: list[np.ndarray]) -> Tensor:
    """uint8 (H, W, 3) arrays -> (B, 3, H, W) float in [0, 1]."""
    stacked = torch.from_numpy(np.stack(images))
    return stacked.permute(0, 3, 1, 2).float() / 255


def tokenizer_world(world: World) -> World:
    """The world that tokenizers learn: also small items and up to three, so that it can grow."""
    return dataclasses.replace(world, sizes=("small", "large"), max_items=3)


@dataclass(frozen=True)
class LabelledImages:
    """Images (B, 3, H, W) with what is in each patch: kinds, colors, coverage (B, P)."""

    images: Tensor
    kinds: Tensor
    colors: Tensor
    backgrounds: Tensor
    captions: list[str]


def image_batch(world: World, num_images: int, rng: np.random.Generator) -> Tensor:
    """(B, 3, H, W) in [0, 1]."""
    return to_tensor([render(sample_scene(rng, world)).image for _ in range(num_images)])


def labelled_batch(world: World, num_images: int, rng: np.random.Generator) -> LabelledImages:
    """Images with dense labels and one caption each."""
    scenes: list[Scene] = [sample_scene(rng, world) for _ in range(num_images)]
    renderings = [render(scene) for scene in scenes]
    labels: list[PatchLabels] = [
        patch_labels(scene, rendering) for scene, rendering in zip(scenes, renderings, strict=True)
    ]
    return LabelledImages(
        images=to_tensor([rendering.image for rendering in renderings]),
        kinds=torch.from_numpy(np.stack([label.kind for label in labels])),
        colors=torch.from_numpy(np.stack([label.color for label in labels])),
        backgrounds=torch.tensor([label.background for label in labels]),
        captions=[caption(scene, rng) for scene in scenes],
    )
