"""Formulas of the metrics against their definitions and closed forms."""

import math

import pytest
import torch

from training.metrics import masked_psnr, psnr, ssim, wilson_interval


def test_psnr_of_a_constant_error() -> None:
    targets = torch.full((2, 3, 16, 16), 0.5)
    offsets = torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    torch.testing.assert_close(psnr(targets + offsets, targets), torch.tensor([20.0, 40.0]))


def test_psnr_of_a_perfect_image_is_finite() -> None:
    image = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(psnr(image, image), torch.tensor([100.0]))


def test_masked_psnr_sees_only_the_mask() -> None:
    targets = torch.rand(1, 3, 8, 8)
    images = targets.clone()
    images[..., :4] += 0.1
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[..., 4:] = True
    torch.testing.assert_close(masked_psnr(images, targets, mask), torch.tensor([100.0]))
    torch.testing.assert_close(masked_psnr(images, targets, ~mask), torch.tensor([20.0]))
    everything = torch.ones_like(mask)
    torch.testing.assert_close(masked_psnr(images, targets, everything), psnr(images, targets))


def test_masked_psnr_of_nothing_is_not_a_number() -> None:
    images = torch.rand(1, 3, 8, 8)
    assert masked_psnr(images, images, torch.zeros(1, 8, 8, dtype=torch.bool)).isnan().all()


def test_ssim_of_constant_images_is_the_luminance_term() -> None:
    c1 = 0.01**2
    first, second = torch.full((1, 3, 16, 16), 0.3), torch.full((1, 3, 16, 16), 0.6)
    expected = (2 * 0.3 * 0.6 + c1) / (0.3**2 + 0.6**2 + c1)
    torch.testing.assert_close(ssim(first, second), torch.tensor([expected]))


def test_ssim_equals_its_definition_at_one_window() -> None:
    """An 11 x 11 image has one window: compute it by hand in float64."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(1, 1, 11, 11, generator=generator, dtype=torch.float64)
    targets = torch.rand(1, 1, 11, 11, generator=generator, dtype=torch.float64)
    axis = torch.arange(11, dtype=torch.float64) - 5
    weights = torch.exp(-(axis[:, None] ** 2 + axis[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    x, y = images[0, 0], targets[0, 0]
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    var_x = (weights * (x - mean_x) ** 2).sum()
    var_y = (weights * (y - mean_y) ** 2).sum()
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    c1, c2 = 0.01**2, 0.03**2
    expected = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    torch.testing.assert_close(ssim(images, targets), expected[None])


def test_ssim_is_one_only_for_equal_images() -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(2, 3, 24, 24, generator=generator)
    torch.testing.assert_close(ssim(images, images), torch.ones(2))
    noise = 0.1 * torch.randn(images.shape, generator=generator)
    assert (ssim(images + noise, images) < 0.99).all()


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_shapes_must_agree(metric: object) -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 16, 16\) and \(2, 3, 16, 16\)"):
        metric(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))  # type: ignore[operator]


def test_masks_must_fit() -> None:
    with pytest.raises(ValueError, match="masks"):
        masked_psnr(
            torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
        )


def test_images_below_a_window_are_refused() -> None:
    with pytest.raises(ValueError, match="11"):
        ssim(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_wilson_interval_solves_its_equation() -> None:
    """Its ends are the rates p with |p - k/n| = z sqrt(p (1 - p) / n)."""
    for low_or_high in wilson_interval(17, 40):
        deviation = abs(low_or_high - 17 / 40)
        spread = 1.96 * math.sqrt(low_or_high * (1 - low_or_high) / 40)
        assert deviation == pytest.approx(spread)


def test_wilson_interval_at_the_ends() -> None:
    low, high = wilson_interval(0, 10)
    assert low == 0
    assert 0 < high < 0.4
    low, high = wilson_interval(200, 200)
    assert 0.97 < low < 1
    assert high == 1


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 5)])
def test_impossible_rates_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="no rate"):
        wilson_interval(successes, trials)
