"""The Frechet distance against closed forms, and what its features see."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from training.batches import random_generator, to_tensor
from training.frechet import (
    NUM_FEATURES,
    FrechetReference,
    frechet_distance,
    gaussian_distance,
    picture_statistics,
)
from training.rendering import render
from training.scenes import Item, Scene
from training.stickers import SHAPES_WORLD, sample_scene


def covariance(size: int, seed: int, rank: int | None = None) -> NDArray[np.float64]:
    rows = np.random.default_rng(seed).normal(size=(size, rank or 2 * size))
    return np.asarray(rows @ rows.T)


def test_the_same_gaussian_is_at_distance_zero() -> None:
    mean, one = np.arange(5.0), covariance(5, seed=0)
    assert gaussian_distance(mean, one, mean, one) == pytest.approx(0, abs=1e-9)


def test_a_shift_costs_its_square() -> None:
    one, shift = covariance(4, seed=1), np.array([1.0, -2.0, 0.5, 0.0])
    assert gaussian_distance(np.zeros(4), one, shift, one) == pytest.approx(5.25)


def test_a_scaled_covariance_costs_the_difference_of_deviations() -> None:
    # tr(C + s^2 C - 2 s C) = (1 - s)^2 tr C
    one, mean = covariance(6, seed=2), np.zeros(6)
    expected = (1 - 3) ** 2 * np.trace(one)
    assert gaussian_distance(mean, one, mean, 9 * one) == pytest.approx(expected)


def test_diagonal_covariances_have_a_closed_form() -> None:
    first, second = np.array([1.0, 4.0, 9.0]), np.array([16.0, 0.25, 0.0])
    found = gaussian_distance(np.zeros(3), np.diag(first), np.zeros(3), np.diag(second))
    assert found == pytest.approx(((first**0.5 - second**0.5) ** 2).sum())


def test_the_trace_is_that_of_the_eigenvalues_of_the_product() -> None:
    first, second = covariance(5, seed=3), covariance(5, seed=4)
    eigenvalues = np.linalg.eigvals(first @ second)
    expected = np.trace(first + second) - 2 * np.sqrt(eigenvalues.real).sum()
    assert gaussian_distance(np.zeros(5), first, np.zeros(5), second) == pytest.approx(expected)


@pytest.mark.parametrize("rank", [1, 3])
def test_singular_covariances_give_a_real_number(rank: int) -> None:
    first, second = covariance(40, seed=5, rank=rank), covariance(40, seed=6, rank=rank)
    mean = np.zeros(40)
    found = gaussian_distance(mean, first, mean, second)
    assert 0 < found < np.trace(first + second)
    assert gaussian_distance(mean, second, mean, first) == pytest.approx(found)
    # Rounding leaves the root of it: about 1e-8 of the scale, where eigenvalues are zero.
    assert gaussian_distance(mean, first, mean, first) < 1e-5 * np.trace(first)


def test_samples_of_two_gaussians_come_near_the_true_distance() -> None:
    rng = np.random.default_rng(7)
    first, second = rng.normal(size=(20000, 3)), 2 * rng.normal(size=(20000, 3)) + 1
    assert frechet_distance(first, second) == pytest.approx(3 + 3, rel=0.05)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_sets_that_are_too_small_or_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 pictures, got 1 and 3"):
        frechet_distance(np.zeros((1, 4)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"\(3, 4\), \(3, 5\)"):
        frechet_distance(np.zeros((3, 4)), np.zeros((3, 5)))
    with pytest.raises(ValueError, match="reference needs at least 2 pictures, got 1"):
        FrechetReference([np.zeros((16, 16, 3), dtype=np.uint8)])
    with pytest.raises(ValueError, match=r"at least 16 x 16 pixels, got \(1, 3, 8, 8\)"):
        picture_statistics(torch.zeros(1, 3, 8, 8))


def test_a_flat_picture_has_its_colour_and_nothing_else() -> None:
    flat = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    found = picture_statistics(flat)
    assert found.shape == (1, NUM_FEATURES)
    torch.testing.assert_close(found[0, :3], torch.tensor([0.2, 0.4, 0.6]))
    assert found[0, 3:].abs().max() == 0


def test_a_square_covers_its_cell_and_has_upright_edges() -> None:
    image = torch.zeros(1, 3, 64, 64)
    image[:, 0, 16:32, 32:48] = 1.0
    found = picture_statistics(image)[0]
    cells = found[3:19].view(4, 4)
    assert cells[1, 2] == 1
    assert cells.sum() == 1
    torch.testing.assert_close(found[19:22], torch.tensor([1 / 16, 0.0, 0.0]))
    mean, _, diagonal, slanted = found[23:27]
    # All but one corner: across and down are seen from the same pixel, so that one is slanted.
    assert diagonal > 0.9 * mean
    assert slanted < 0.05 * mean


def scenes(stream: str, number: int) -> list[Scene]:
    return [
        sample_scene(random_generator(0, stream, index), SHAPES_WORLD) for index in range(number)
    ]


def pictures(found: list[Scene]) -> list[NDArray[np.uint8]]:
    return [render(scene).image for scene in found]


def with_items(scene: Scene, **changes: str | float) -> Scene:
    items: tuple[Item, ...] = tuple(replace(item, **changes) for item in scene.items)
    return replace(scene, items=items)


def blurred(found: list[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    means = torch.nn.functional.avg_pool2d(
        to_tensor(found), 3, stride=1, padding=1, count_include_pad=False
    )
    return list((255 * means).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def test_faults_lie_further_from_true_pictures_than_true_pictures_do() -> None:
    reference = FrechetReference(pictures(scenes("reference", 300)))
    own = scenes("painted", 150)
    floor = reference.distance(pictures(own))
    faults = {
        "kind": pictures([with_items(scene, kind="circle") for scene in own]),
        "size": pictures([with_items(scene, extent=36.0) for scene in own]),
        "missing": pictures([replace(scene, items=scene.items[:1]) for scene in own]),
        "blur": blurred(pictures(own)),
        "background": [np.roll(picture, 1, axis=2) for picture in pictures(own)],
    }
    for name, fault in faults.items():
        assert reference.distance(fault) > 1.2 * floor, name


def test_the_units_are_the_references_spread() -> None:
    own, other = pictures(scenes("reference", 30)), pictures(scenes("other", 30))
    features = [picture_statistics(to_tensor(found)).double().numpy() for found in (own, other)]
    std = features[0].std(axis=0, ddof=1).clip(min=1e-3)
    expected = frechet_distance(features[1] / std, features[0] / std)
    assert FrechetReference(own).distance(other) == pytest.approx(expected, rel=1e-4)
