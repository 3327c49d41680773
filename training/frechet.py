"""Frechet distance between two sets of pictures, in features that nothing has learned.

The usual features, Inception's, need downloaded weights and know photographs. Here a picture is
described by plain statistics of its colours, places and edges (`picture_statistics`), so no network
is judged by itself or by a relative. Distances are not comparable with FID, nor across references
or numbers of pictures: always give the distance of true pictures, as many, beside it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.batches import to_tensor

FEATURES = "picture_statistics"
"""Name of the features, for reports."""

NUM_FEATURES = 42

Matrix = NDArray[np.float64]

_BATCH_SIZE = 64
_GRID = 4
_NUM_SCALES = 4
# Distance in RGB from which a pixel is taken to differ from the background.
_COVERED = 0.25
# What never varies among the references still needs a unit; features are shares or contrasts.
_MIN_STD = 1e-3


def _root(covariance: Matrix) -> Matrix:
    """R with R @ R.T = covariance; eigenvalues that rounding made negative count as zero."""
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(values.clip(min=0)))


def gaussian_distance(
    first_mean: Matrix, first_covariance: Matrix, second_mean: Matrix, second_covariance: Matrix
) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the squared Frechet distance; never negative.

    Source: Dowson and Landau 1982 (doi 10.1016/0047-259X(82)90077-X), as in Heusel et al. 2017
    (arXiv 1706.08500). The eigenvalues of C1 C2 are the squared singular values of R1^T R2, where
    R R^T = C; so the trace of its root is their sum, real and defined for singular covariances too.
    """
    product = _root(first_covariance).T @ _root(second_covariance)
    overlap = np.linalg.svd(product, compute_uv=False).sum()
    shift = np.square(first_mean - second_mean).sum()
    distance = shift + np.trace(first_covariance) + np.trace(second_covariance) - 2 * overlap
    return max(0.0, float(distance))


def frechet_distance(first: Matrix, second: Matrix) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features (N, F), (M, F).

    Raises:
        ValueError: a set has fewer than two rows, or the shapes do not fit.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features must be (N, F) and (M, F), got {first.shape}, {second.shape}")
    if min(len(first), len(second)) < 2:
        raise ValueError(f"each set needs at least 2 pictures, got {len(first)} and {len(second)}")
    moments = []
    for rows in (first.astype(np.float64), second.astype(np.float64)):
        moments += [rows.mean(axis=0), np.atleast_2d(np.cov(rows, rowvar=False))]
    return gaussian_distance(*moments)


def _edges(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 5): root mean square and mean of the gradient, and its directions.

    Directions are those of the channel with the steepest gradient: horizontal against vertical,
    diagonals against both, and how far it is slanted, each weighted by the gradient.
    """
    across = images[..., :-1, 1:] - images[..., :-1, :-1]
    down = images[..., 1:, :-1] - images[..., :-1, :-1]
    squares = across.square() + down.square()
    steepest = squares.argmax(1, keepdim=True)
    angle = torch.atan2(down.gather(1, steepest), across.gather(1, steepest))[:, 0]
    strength = squares.sum(1).sqrt()  # (B, H - 1, W - 1)
    values = (
        strength,
        strength * torch.cos(2 * angle),
        strength * torch.cos(4 * angle),
        strength * torch.sin(2 * angle).abs(),
    )
    means = [value.mean((1, 2)) for value in values]
    return torch.stack([strength.square().mean((1, 2)).sqrt(), *means], dim=1)


def picture_statistics(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] -> (B, NUM_FEATURES).

    The background's colour, taken to be the median (3); what share of each of 4 x 4 cells differs
    from it (16) and by what colour on average (3); edges at four scales, each half the last (20).

    Raises:
        ValueError: images is not (B, 3, H, W) with sides of at least 16 pixels.
    """
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 16:
        raise ValueError(
            f"images must be (B, 3, H, W) of at least 16 x 16 pixels, got {tuple(images.shape)}"
        )
    # Contiguous, as torch's median of an expanded view is wrong.
    background = images.flatten(2).contiguous().median(2).values  # (B, 3)
    images = images - background[:, :, None, None]
    covered = (images.square().sum(1, keepdim=True) > _COVERED**2).float()
    features = [
        background,
        functional.adaptive_avg_pool2d(covered, _GRID).flatten(1),
        (images * covered).mean((2, 3)),
    ]
    for scale in range(_NUM_SCALES):
        features.append(_edges(functional.avg_pool2d(images, 2**scale)))
    return torch.cat(features, dim=1)


@torch.inference_mode()
def _features(pictures: Sequence[NDArray[np.uint8]]) -> Matrix:
    batches = [
        picture_statistics(to_tensor(list(pictures[start : start + _BATCH_SIZE])))
        for start in range(0, len(pictures), _BATCH_SIZE)
    ]
    return torch.cat(batches).double().numpy()


class FrechetReference:
    """True pictures (H, W, 3) uint8, which others are compared with."""

    def __init__(self, pictures: Sequence[NDArray[np.uint8]]) -> None:
        if len(pictures) < 2:
            raise ValueError(f"a reference needs at least 2 pictures, got {len(pictures)}")
        features = _features(pictures)
        # In units of the references' own spread, so that no feature outweighs the others.
        self._std = features.std(axis=0, ddof=1).clip(min=_MIN_STD)
        self._features = features / self._std

    def distance(self, pictures: Sequence[NDArray[np.uint8]]) -> float:
        """Squared Frechet distance of the pictures' statistics from the references'.

        Raises:
            ValueError: there are fewer than 2 pictures.
        """
        if len(pictures) < 2:
            raise ValueError(f"the Frechet distance needs at least 2 pictures, got {len(pictures)}")
        return frechet_distance(_features(pictures) / self._std, self._features)
