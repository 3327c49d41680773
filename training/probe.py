"""Linear probe: how much of a scene's meaning can be read from single tokens by a linear rule.

On held-out scenes, whose truth is known, a multinomial logistic regression on frozen tokens names
the kind and the colour of the item in each covered patch, and the background of each free patch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.batches import random_generator, to_tensor
from training.metrics import wilson_interval
from training.rendering import PATCH_KINDS, PatchLabels, patch_labels, render
from training.stickers import COLORS, World, sample_scene

Encode = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) in [0, 1] -> tokens (B, N, C) of a square grid, row by row."""

NUM_CLASSES = {"kind": len(PATCH_KINDS), "color": 1 + len(COLORS), "background": len(COLORS)}

_BATCH_SIZE = 16
# Neighbouring patches tell nearly the same, so more of them would cost time and decide nothing.
_MAX_PATCHES = 16
# On the mean cross-entropy, for standardised tokens: without it a few hundred scenes are learned
# by heart (95 % of the stickers' kinds are right at 0.01, 92 % at 1e-5, with 400 scenes).
_PENALTY = 0.01
_MAX_ITERATIONS = 100


@dataclass(frozen=True)
class Rows:
    """R patches: tokens (R, C), classes (R,) and the number of the scene that each is of (R,)."""

    tokens: Tensor
    classes: Tensor
    scenes: Tensor


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of patches that are named rightly, with its 95 % interval."""

    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class LinearProbe:
    """Logits (tokens - mean) / std @ weight + bias; mean and std (C,) are the training rows'."""

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def predict(self, tokens: Tensor) -> Tensor:
        """(R, C) -> (R,), the most likely class of each."""
        standard = (tokens.to(self.mean) - self.mean) / self.std
        return (standard @ self.weight + self.bias).argmax(-1)


def fit_probe(tokens: Tensor, classes: Tensor, num_classes: int) -> LinearProbe:
    """Multinomial logistic regression of classes (R,) on tokens (R, C), by L-BFGS in float64.

    Minimises the mean cross-entropy plus half of `_PENALTY` times the squared weights. The problem
    is convex and starts at zero, so nothing depends on chance.

    Raises:
        ValueError: no rows, or as many classes as tokens are not given.
    """
    if not len(tokens) or len(tokens) != len(classes):
        raise ValueError(
            f"a probe needs one class per token and at least one, got {len(tokens)} tokens "
            f"and {len(classes)} classes"
        )
    rows = tokens.double()
    mean, std = rows.mean(0), rows.std(0, correction=0).clamp(min=1e-6)
    rows = (rows - mean) / std
    weight = torch.zeros(rows.shape[1], num_classes, dtype=rows.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=rows.dtype, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=_MAX_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        solver.zero_grad()
        loss = functional.cross_entropy(rows @ weight + bias, classes)
        loss = loss + _PENALTY / 2 * weight.square().sum()
        loss.backward()
        return loss.item()

    with torch.enable_grad():
        solver.step(closure)
    return LinearProbe(mean, std, weight.detach(), bias.detach())


def accuracy_by_scene(right: Tensor, scenes: Tensor) -> Accuracy:
    """Share of true values in right (R,), with the interval that rows of one scene allow.

    Patches of one scene are right or wrong together, so they count for less than as many
    independent ones: Wilson's interval is taken for the number of independent patches whose rate
    would vary as much (Kish's effective sample size), by the variance between scenes of a ratio
    estimate (Cochran, Sampling Techniques, 3rd edition, section 9A).
    """
    _, numbers = scenes.unique(return_inverse=True)
    sizes = numbers.bincount().double()
    hits = numbers.bincount(weights=right.double())
    num_scenes, num_rows = len(sizes), len(right)
    rate = float(hits.sum() / num_rows)
    effective = float(num_scenes)  # what is left if a scene's patches all agree
    if num_scenes > 1:
        spread = float((hits - rate * sizes).square().sum()) * num_scenes / (num_scenes - 1)
        if spread > 0:
            # No less than one scene's worth, and no more than the rows there are.
            effective = min(max(rate * (1 - rate) * num_rows**2 / spread, 1.0), float(num_rows))
    low, high = wilson_interval(rate * effective, effective)
    return Accuracy(rate=rate, low=low, high=high)


def _rows_of(labels: PatchLabels) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.int64]]]:
    """Per target: which patches are asked, and the class of every patch."""
    background = np.full_like(labels.kind, labels.background)
    return {
        "kind": (labels.kind > 0, labels.kind),
        "color": (labels.color > 0, labels.color),
        "background": (labels.coverage == 0, background),
    }


def _patch_size(tokens: Tensor, image_size: int) -> int:
    grid = math.isqrt(tokens.shape[1]) if tokens.ndim == 3 else 0
    if grid < 1 or grid**2 != tokens.shape[1] or image_size % grid:
        raise ValueError(
            f"a probe needs tokens (B, N, C) of a square grid that divides the {image_size} pixels "
            f"of a scene, got {tuple(tokens.shape)}"
        )
    return image_size // grid


@torch.no_grad()
def probe_rows(
    encode: Encode,
    world: World,
    num_scenes: int,
    seed: int,
    stream: str,
    on_done: Callable[[int], None] | None = None,
) -> dict[str, Rows]:
    """Tokens and truth of `num_scenes` scenes, for each target that the world has.

    stream: name of the random stream; scenes depend on it, the seed and the world alone.
    on_done: is told how many more scenes are encoded.

    Raises:
        ValueError: the tokens are not (B, N, C) on a square grid that divides the image.
    """
    found: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in NUM_CLASSES}
    for start in range(0, num_scenes, _BATCH_SIZE):
        indices = range(start, min(start + _BATCH_SIZE, num_scenes))
        rngs = [random_generator(seed, stream, index) for index in indices]
        scenes = [sample_scene(rng, world) for rng in rngs]
        renderings = [render(scene) for scene in scenes]
        tokens = encode(to_tensor([rendering.image for rendering in renderings])).float().cpu()
        patch = _patch_size(tokens, world.image_size)
        for index, rng, scene, rendering, row in zip(
            indices, rngs, scenes, renderings, tokens, strict=True
        ):
            labels = patch_labels(scene, rendering, patch)
            for name, (asked, classes) in _rows_of(labels).items():
                chosen = rng.permutation(np.flatnonzero(asked))[:_MAX_PATCHES]
                numbers = torch.full((len(chosen),), index)
                found[name].append((row[chosen], torch.from_numpy(classes[chosen]), numbers))
        if on_done:
            on_done(len(indices))
    rows = {name: Rows(*map(torch.cat, zip(*parts, strict=True))) for name, parts in found.items()}
    return {name: one for name, one in rows.items() if len(one.tokens)}


def linear_probe(
    encode: Encode,
    world: World,
    *,
    num_train_scenes: int,
    num_test_scenes: int,
    seed: int,
    targets: Sequence[str] = tuple(NUM_CLASSES),
    on_done: Callable[[int], None] | None = None,
) -> dict[str, Accuracy]:
    """Accuracy per target on scenes that neither the probe nor any training stage saw.

    encode: a frozen encoder in eval mode, or anything else that makes tokens of images.
    targets: "kind" and "color" of the item in covered patches, "background" of free ones; those
    that the world's scenes never show, such as the colour of things, are left out.

    Raises:
        ValueError: a number of scenes is below 1, or the tokens do not fit (see `probe_rows`).
    """
    if min(num_train_scenes, num_test_scenes) < 1:
        raise ValueError(
            "a probe needs at least 1 scene to learn from and 1 to be tested on, "
            f"got {num_train_scenes} and {num_test_scenes}"
        )
    train = probe_rows(encode, world, num_train_scenes, seed, "held-out-probe-train", on_done)
    test = probe_rows(encode, world, num_test_scenes, seed, "held-out-probe-test", on_done)
    accuracies = {}
    for name in targets:
        if name in train and name in test:
            probe = fit_probe(train[name].tokens, train[name].classes, NUM_CLASSES[name])
            right = probe.predict(test[name].tokens) == test[name].classes
            accuracies[name] = accuracy_by_scene(right, test[name].scenes)
    return accuracies
