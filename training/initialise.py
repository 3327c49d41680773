"""Closed-form starting points: principal components and ridge regressions instead of long training.

On CPU budgets these do most of what gradient training of a small tokenizer would need hours for;
every transformer branch starts at zero, so the linear maps set here are the whole model at first.
n samples, P patches per image, d input width, k components.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.bridge import BridgeDecoder, BridgeEncoder
from models.decoder import PixelDecoder
from models.encoder import SmallViT
from models.positions import patchify


@dataclass(frozen=True)
class PrincipalComponents:
    """mean (d,), directions (k, d) with unit rows, std (k,) along them."""

    mean: Tensor
    directions: Tensor
    std: Tensor


def principal_components(x: Tensor, num_components: int) -> PrincipalComponents:
    """Leading components of rows x (n, d), computed in float64."""
    x = x.double()
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / len(x)
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    values, vectors = values.flip(0)[:num_components], vectors.flip(1)[:, :num_components]
    return PrincipalComponents(
        mean.float(), vectors.T.float(), values.clamp(min=1e-12).sqrt().float()
    )


def ridge(inputs: Tensor, targets: Tensor, strength: float = 1e-3) -> tuple[Tensor, Tensor]:
    """(weight, bias) of the linear map from inputs (n, d) to targets (n, m), least squares.

    `strength` is relative to the mean variance of an input.
    """
    x, y = inputs.double(), targets.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    penalty = strength * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
    weight = torch.linalg.solve(gram + penalty, x.T @ y).T
    return weight.float(), (y_mean - weight @ x_mean).float()


@torch.no_grad()
def set_linear(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Overwrite the leading outputs of a linear layer."""
    layer.weight[: len(weight)].copy_(weight)
    layer.bias[: len(bias)].copy_(bias)


@torch.no_grad()
def initialise_encoder(encoder: SmallViT, images: Tensor, num_components: int) -> None:
    """Patch embedding = half-whitened principal components of the patches of `images`.

    Four constant channels carry about the energy of all components together: the final
    LayerNorm divides by each token's norm, and a constant of known size keeps that scale readable.
    """
    patches = patchify(2 * images - 1, encoder.config.patch_size).flatten(0, 1)
    components = principal_components(patches, num_components)
    half_whitened = components.directions / components.std[:, None].sqrt()
    energy = components.std.sum()  # of the half-whitened components
    half_whitened *= (num_components / energy).sqrt()
    set_linear(encoder.embed, half_whitened, -half_whitened @ components.mean)
    constants = torch.tensor([1.0, -1.0, 1.0, -1.0]) * math.sqrt(num_components / 4)
    rest = slice(num_components, num_components + 4)
    encoder.embed.weight[rest] = 0
    encoder.embed.bias[rest] = constants
    encoder.embed.weight[rest.stop :].normal_(std=0.02)
    encoder.embed.bias[rest.stop :] = 0
    encoder.position.zero_()


def painting_components(
    tokens: Tensor, pixels: Tensor, pixel_weight: float, num_components: int
) -> tuple[Tensor, Tensor]:
    """Linear maps (k, C) to latents and (C, k) back, for tokens (n, C) and their pixels (n, m).

    They lose least of the tokens' squares plus `pixel_weight` squared times those of the pixels
    that a linear map reads from the tokens: reduced-rank regression, here of A t on t, where A
    stacks the identity and that map. Weight 0 gives the half-whitened principal components.
    Source: Izenman 1975 (doi 10.1016/0047-259X(75)90042-1).
    """
    weight, _ = ridge(tokens, pixels)
    x = tokens.double() - tokens.double().mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    std = values.clamp(min=1e-12).sqrt()
    root, inverse = ((vectors * power) @ vectors.T for power in (std, 1 / std))
    wanted = torch.cat([torch.eye(len(root)).to(root), pixel_weight * weight.double()])
    _, gains, rows = torch.linalg.svd(wanted @ root, full_matrices=False)
    gains, rows = gains[:num_components, None].sqrt(), rows[:num_components]
    return (gains * rows @ inverse).float(), (root @ rows.T / gains.T).float()


@torch.no_grad()
def initialise_bridge(
    encoder: BridgeEncoder,
    decoder: BridgeDecoder,
    tokens: Tensor,
    pixels: Tensor | None = None,
    pixel_weight: float = 0.0,
) -> None:
    """Mean head = half-whitened principal components of tokens (n, C); decoder = their inverse.

    With a pixel_weight, `painting_components` instead, pixels (n, m) in [-1, 1] being those of each
    token's patch: a pretrained encoder varies most in what things are, least in how they look.
    """
    width = decoder.in_proj.in_features
    components = principal_components(tokens, width)
    scale = components.std.sqrt()[:, None]
    project, restore = components.directions / scale, (components.directions * scale).T
    if pixels is not None and pixel_weight > 0:
        project, restore = painting_components(tokens, pixels, pixel_weight, width)
    nn.init.zeros_(encoder.to_moments.weight)
    nn.init.constant_(encoder.to_moments.bias, -5.0)  # logvar: a narrow posterior
    set_linear(encoder.to_moments, project, -project @ components.mean)
    set_linear(decoder.in_proj, restore, components.mean)


@torch.no_grad()
def initialise_decoder(decoder: PixelDecoder, tokens: Tensor, images: Tensor) -> None:
    """Identity in, ridge regression from tokens (B, P, C) to the pixels of images out."""
    config = decoder.config
    if config.width != config.token_width:
        raise ValueError(
            f"a linear start needs width {config.width} = token_width {config.token_width}"
        )
    set_linear(decoder.embed, torch.eye(config.width), torch.zeros(config.width))
    decoder.position.zero_()
    patches = patchify(2 * images - 1, config.patch_size).flatten(0, 1)
    set_linear(decoder.to_pixels, *ridge(tokens.flatten(0, 1), patches))
