"""The linear probe: what it can and cannot read, its interval, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.encoder import SmallViT, SmallViTConfig
from models.positions import patchify
from training.batches import random_generator, to_tensor
from training.metrics import wilson_interval
from training.probe import (
    NUM_CLASSES,
    accuracy_by_scene,
    fit_probe,
    linear_probe,
    probe_rows,
)
from training.rendering import patch_labels, render
from training.stickers import SHAPES_WORLD, World, sample_scene

THINGS_WORLD = World(
    shapes=(),
    colors=SHAPES_WORLD.colors,
    things=("cat", "dog", "apple"),
    sizes=("large",),
    positions=SHAPES_WORLD.positions,
    background_styles=("plain",),
    scenes=(),
    max_items=1,
    edit_kinds=(),
    same_kind_counts=False,
)


def patch_pixels(images: Tensor) -> Tensor:
    return patchify(images, 16)


def test_separable_classes_are_learned_and_the_optimum_is_stationary() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = 6 * torch.eye(4)[:, :3]
    classes = torch.arange(4).repeat(100)
    tokens = centers[classes] + torch.randn(400, 3, generator=generator)
    probe = fit_probe(tokens, classes, num_classes=5)
    assert (probe.predict(tokens) == classes).double().mean() > 0.98

    standard = (tokens.double() - probe.mean) / probe.std
    shares = (standard @ probe.weight + probe.bias).softmax(-1)
    error = shares - torch.nn.functional.one_hot(classes, 5)
    gradient = standard.T @ error / len(tokens) + 0.01 * probe.weight
    assert gradient.abs().max() < 1e-4


def test_shuffled_classes_are_not_found_in_other_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(2000, 8, generator=generator)
    classes = torch.randint(4, (2000,), generator=generator)
    probe = fit_probe(tokens[:1000], classes[:1000], num_classes=4)
    rate = (probe.predict(tokens[1000:]) == classes[1000:]).double().mean()
    assert 0.2 < rate < 0.3


def test_the_probe_does_not_depend_on_scale_or_offset_of_the_tokens() -> None:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(300, 6, generator=generator).double()
    classes = (tokens[:, 0] + 0.5 * tokens[:, 1] > 0).long()
    changed = 50 * tokens + 7
    first = fit_probe(tokens, classes, 2).predict(tokens)
    assert torch.equal(first, fit_probe(changed, classes, 2).predict(changed))


def test_a_fit_where_gradients_are_off_is_the_same() -> None:
    tokens, classes = torch.eye(4).repeat(3, 1), torch.arange(4).repeat(3)
    outside = fit_probe(tokens, classes, 4)
    with torch.no_grad():
        assert torch.equal(fit_probe(tokens, classes, 4).weight, outside.weight)


def test_rows_are_the_truth_of_the_patches_they_come_from() -> None:
    rows = probe_rows(patch_pixels, SHAPES_WORLD, 6, 3, "some-stream")
    for index in range(6):
        scene = sample_scene(random_generator(3, "some-stream", index), SHAPES_WORLD)
        rendering = render(scene)
        labels = patch_labels(scene, rendering)
        pixels = patch_pixels(to_tensor([rendering.image]))[0]
        own = {name: one.classes[one.scenes == index].tolist() for name, one in rows.items()}
        assert len(own["kind"]) == min(16, int((labels.kind > 0).sum()))
        assert set(own["kind"]) <= set(labels.kind.tolist()) - {0}
        assert set(own["color"]) <= set(labels.color.tolist()) - {0}
        assert set(own["background"]) == {labels.background}
        free = rows["background"].tokens[rows["background"].scenes == index]
        assert all(
            any(torch.equal(row, pixels[i]) for i in np.flatnonzero(labels.coverage == 0))
            for row in free
        )


def test_a_patch_alone_tells_the_background_but_not_the_kind_and_noise_tells_nothing() -> None:
    torch.manual_seed(0)
    noise = torch.randn(64, 8)
    options = {"num_train_scenes": 60, "num_test_scenes": 30, "seed": 0}
    seen = linear_probe(patch_pixels, SHAPES_WORLD, **options)
    blind = linear_probe(lambda images: noise.expand(len(images), -1, -1), SHAPES_WORLD, **options)
    assert seen["background"].rate > 0.97  # a free patch is nothing but its background
    assert blind["background"].rate < 0.4
    assert blind["kind"].rate < 0.4
    assert seen["kind"].rate < 0.5  # the middle of a circle looks like that of a square


@pytest.mark.parametrize("patch_size", [8, 16, 32])
def test_any_grid_is_probed(patch_size: int) -> None:
    torch.manual_seed(0)
    config = SmallViTConfig(patch_size=patch_size, width=24, depth=1, num_heads=2)
    found = linear_probe(
        SmallViT(config), SHAPES_WORLD, num_train_scenes=12, num_test_scenes=6, seed=1
    )
    assert set(found) == set(NUM_CLASSES)
    assert all(0 <= one.low <= one.rate <= one.high <= 1 for one in found.values())


def test_things_have_no_colour_to_be_read() -> None:
    found = linear_probe(patch_pixels, THINGS_WORLD, num_train_scenes=4, num_test_scenes=4, seed=0)
    assert set(found) == {"kind", "background"}


def test_the_interval_is_wilsons_where_scenes_have_one_patch_each() -> None:
    right = torch.tensor([True] * 70 + [False] * 30)
    found = accuracy_by_scene(right, torch.arange(100))
    assert found.rate == pytest.approx(0.7)
    # The variance between scenes is taken with 1 / (n - 1): 99 effective patches.
    assert (found.low, found.high) == pytest.approx(wilson_interval(0.7 * 99, 99))


def test_patches_that_agree_within_scenes_count_as_one() -> None:
    right = torch.tensor([True] * 70 + [False] * 30)
    once = accuracy_by_scene(right, torch.arange(100))
    copied = accuracy_by_scene(right.repeat_interleave(16), torch.arange(100).repeat_interleave(16))
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high))


def test_independent_patches_count_fully_and_a_perfect_rate_by_scenes() -> None:
    generator = torch.Generator().manual_seed(0)
    scenes = torch.arange(400).repeat_interleave(10)
    right = torch.rand(4000, generator=generator) < 0.8
    found = accuracy_by_scene(right, scenes)
    low, high = wilson_interval(int(right.sum()), 4000)
    assert found.high - found.low == pytest.approx(high - low, rel=0.1)
    perfect = accuracy_by_scene(torch.ones(4000, dtype=torch.bool), scenes)
    assert (perfect.low, perfect.high) == wilson_interval(400, 400)


def test_tokens_that_are_no_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"square grid .* \(2, 60, 3\)"):
        probe_rows(lambda images: torch.zeros(len(images), 60, 3), SHAPES_WORLD, 2, 0, "x")
    with pytest.raises(ValueError, match="divides the 128 pixels"):
        probe_rows(lambda images: torch.zeros(len(images), 49, 3), SHAPES_WORLD, 2, 0, "x")


def test_numbers_that_leave_nothing_to_do_are_refused() -> None:
    with pytest.raises(ValueError, match="got 3 and 0"):
        linear_probe(patch_pixels, SHAPES_WORLD, num_train_scenes=3, num_test_scenes=0, seed=0)
    with pytest.raises(ValueError, match="2 tokens and 1 classes"):
        fit_probe(torch.zeros(2, 3), torch.zeros(1, dtype=torch.long), 2)


def test_training_and_test_scenes_differ() -> None:
    small = replace(SHAPES_WORLD, max_items=1)
    train = probe_rows(patch_pixels, small, 5, 0, "held-out-probe-train")["kind"]
    test = probe_rows(patch_pixels, small, 5, 0, "held-out-probe-test")["kind"]
    assert not torch.equal(train.tokens[:10], test.tokens[:10])
