"""Image metrics and confidence intervals. Images are (B, 3, H, W) in [0, 1]; results are (B,).

Averages over a set are means of the images' own values, which lie 0.7 to 1 dB above a PSNR of the
pooled error: never compare one with the other.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

# Errors below this count as this, so that a perfect picture (100 dB) cannot make a mean infinite.
_MIN_MSE = 1e-10

_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_SSIM_K1, _SSIM_K2 = 0.01, 0.03


def _check(images: Tensor, targets: Tensor) -> None:
    if images.shape != targets.shape or images.ndim != 4:
        raise ValueError(
            "images and targets must both be (B, C, H, W), "
            f"got {tuple(images.shape)} and {tuple(targets.shape)}"
        )


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image in dB, at most 100.

    Raises:
        ValueError: the shapes differ or are not (B, C, H, W).
    """
    _check(images, targets)
    mse = (images - targets).square().mean((1, 2, 3))
    return -10 * mse.clamp(min=_MIN_MSE).log10()


def masked_psnr(images: Tensor, targets: Tensor, masks: Tensor) -> Tensor:
    """PSNR per image in dB over the pixels where masks (B, H, W) are true; NaN if none is.

    Raises:
        ValueError: the shapes do not fit.
    """
    _check(images, targets)
    if masks.shape != (len(images), *images.shape[2:]):
        raise ValueError(
            f"masks must be (B, H, W) of {tuple(images.shape)}, got {tuple(masks.shape)}"
        )
    error = (images - targets).square().mean(1)  # (B, H, W)
    mse = (error * masks).sum((1, 2)) / masks.sum((1, 2))
    return -10 * mse.clamp(min=_MIN_MSE).log10()


def _gaussian_window(like: Tensor) -> Tensor:
    offsets = torch.arange(_SSIM_WINDOW, dtype=like.dtype, device=like.device)
    offsets -= (_SSIM_WINDOW - 1) / 2
    window = torch.exp(-offsets.square() / (2 * _SSIM_SIGMA**2))
    return window / window.sum()


def _local_mean(images: Tensor) -> Tensor:
    """Gaussian average around each pixel that has a whole window."""
    window = _gaussian_window(images)
    flat = images.flatten(0, 1)[:, None]  # (B * C, 1, H, W)
    flat = functional.conv2d(flat, window.view(1, 1, -1, 1))
    flat = functional.conv2d(flat, window.view(1, 1, 1, -1))
    return flat.view(*images.shape[:2], *flat.shape[2:])


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity per image, at most 1: mean over the three channels and all windows.

    Source: Wang et al. 2004 (doi 10.1109/TIP.2003.819861), Gaussian window 11 x 11 with sigma 1.5,
    K1 = 0.01, K2 = 0.03, L = 1, population variances. Deviation: each colour channel on its own,
    where the paper measures luminance.

    Raises:
        ValueError: the shapes differ, or a side is below 11 pixels.
    """
    _check(images, targets)
    if min(images.shape[2:]) < _SSIM_WINDOW:
        raise ValueError(
            f"ssim needs sides of at least {_SSIM_WINDOW} pixels, got {tuple(images.shape)}"
        )
    c1, c2 = _SSIM_K1**2, _SSIM_K2**2
    mean_x, mean_y = _local_mean(images), _local_mean(targets)
    var_x = _local_mean(images.square()) - mean_x.square()
    var_y = _local_mean(targets.square()) - mean_y.square()
    covariance = _local_mean(images * targets) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean((1, 2, 3))


def wilson_interval(
    num_successes: float, num_trials: float, quantile: float = 1.96
) -> tuple[float, float]:
    """Confidence interval of a success rate; the default quantile gives 95 %.

    Numbers need not be whole: trials that are not independent count for fewer.

    Source: Wilson 1927 (doi 10.1080/01621459.1927.10502953), without continuity correction.

    Raises:
        ValueError: not 0 <= num_successes <= num_trials, or no trials.
    """
    if num_trials < 1 or not 0 <= num_successes <= num_trials:
        raise ValueError(f"{num_successes} successes in {num_trials} trials is no rate")
    rate, square = num_successes / num_trials, quantile**2
    center = (rate + square / (2 * num_trials)) / (1 + square / num_trials)
    spread = rate * (1 - rate) / num_trials + square / (4 * num_trials**2)
    reach = quantile * math.sqrt(spread) / (1 + square / num_trials)
    # The rate lies within; at 0 and 1 rounding may say otherwise.
    return max(0.0, min(rate, center - reach)), min(1.0, max(rate, center + reach))
