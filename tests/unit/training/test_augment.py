"""Augmentation before the discriminator: its ranges, its formulas and its only source of chance."""

import pytest
import torch
from torch import Tensor

from training import augment as augmentation
from training.augment import augment, translate


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(num_images: int = 4) -> Tensor:
    return 2 * torch.rand(num_images, 3, 16, 24, generator=draws(9)) - 1


def test_translation_moves_each_image_and_brings_in_zeros() -> None:
    x = images(2)
    moved = translate(x, [2, -1], [0, 3])
    assert moved[0, :, 2:].equal(x[0, :, :-2])
    assert moved[0, :, :2].abs().max() == 0
    assert moved[1, :, :-1, 3:].equal(x[1, :, 1:, :-3])
    assert moved[1, :, -1].abs().max() == 0
    assert moved[1, :, :, :3].abs().max() == 0
    assert translate(x, [0, 0], [0, 0]).equal(x)


def test_only_the_generator_decides() -> None:
    x = images()
    torch.manual_seed(0)
    once = augment(x, draws(1))
    torch.manual_seed(1)
    assert augment(x, draws(1)).equal(once)
    assert not augment(x, draws(2)).equal(once)
    both = draws(1)
    augment(x, both)
    assert not augment(x, both).equal(once)


def test_shifts_reach_an_eighth_of_the_side_and_no_further() -> None:
    ones = torch.ones(400, 3, 16, 24)
    rows, columns = set(), set()
    with pytest.MonkeyPatch.context() as patch:
        # Colour aside, a shift shows in where the zeros are.
        patch.setattr(augmentation, "BRIGHTNESS", 0.0)
        patch.setattr(augmentation, "SATURATION", (1.0, 1.0))
        patch.setattr(augmentation, "CONTRAST", (1.0, 1.0))
        moved = augment(ones, draws(0))
    for image in moved[:, 0]:
        filled = (image > 0.5).nonzero()
        top, left = filled.min(0).values.tolist()
        bottom, right = filled.max(0).values.tolist()
        rows.add(top if top else bottom - 15)
        columns.add(left if left else right - 23)
    assert rows == set(range(-2, 3))
    assert columns == set(range(-3, 4))


def test_colours_follow_their_formulas_and_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "TRANSLATION", 0.0)
    x = images(500)
    out = augment(x, draws(3))
    brightness = (out - x).mean((1, 2, 3))  # the other two keep the mean
    assert brightness.abs().max() <= 0.5 + 1e-5
    assert brightness.min() < -0.48
    assert brightness.max() > 0.48
    centred = x - x.mean((1, 2, 3), keepdim=True)
    grey_in, grey_out = centred.mean(1), out.mean(1) - out.mean((1, 2, 3))[:, None, None]
    contrast = (grey_in * grey_out).sum((1, 2)) / grey_in.square().sum((1, 2))
    assert contrast.min() == pytest.approx(0.5, abs=0.02)
    assert contrast.max() == pytest.approx(1.5, abs=0.02)
    hue_in, hue_out = x - x.mean(1, keepdim=True), out - out.mean(1, keepdim=True)
    saturation = (hue_in * hue_out).sum((1, 2, 3)) / hue_in.square().sum((1, 2, 3)) / contrast
    assert saturation.min() == pytest.approx(0.0, abs=0.02)
    assert saturation.max() == pytest.approx(2.0, abs=0.02)
    factor = (saturation * contrast)[:, None, None, None]
    expected = grey_in[:, None] * contrast[:, None, None, None] + hue_in * factor
    mean = (x.mean((1, 2, 3)) + brightness)[:, None, None, None]
    torch.testing.assert_close(out, expected + mean, atol=1e-4, rtol=1e-4)


def test_gradients_pass_through() -> None:
    x = images().requires_grad_()
    augment(x, draws(5)).square().sum().backward()
    assert x.grad is not None
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()
