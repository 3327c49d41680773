"""The closed-form start of the bridge: components of tokens alone, or of tokens and pixels."""

import pytest
import torch
from torch import Tensor

from models.bridge import BridgeConfig, BridgeDecoder, BridgeEncoder
from training.initialise import (
    initialise_bridge,
    painting_components,
    principal_components,
    ridge,
)

WIDTH, LATENTS = 24, 6


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    """Tokens (n, 24) whose large variances say nothing of the pixels (n, 10)."""
    generator = torch.Generator().manual_seed(3)
    factors = torch.randn(4096, WIDTH, generator=generator)
    scales = torch.linspace(3.0, 0.3, WIDTH)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator)).Q
    mix = torch.randn(4, 10, generator=generator)
    return (factors * scales) @ turn + 0.7, factors[:, -4:] @ mix - 0.2


def bridged(tokens: Tensor, pixels: Tensor | None, weight: float) -> Tensor:
    config = BridgeConfig(
        token_width=WIDTH, latent_width=LATENTS, num_heads=2, encoder_depth=1, decoder_depth=1
    )
    encoder, decoder = BridgeEncoder(config), BridgeDecoder(config)
    initialise_bridge(encoder, decoder, tokens, pixels, weight)
    with torch.no_grad():
        found: Tensor = decoder(encoder(tokens[None]).mean)[0]
    return found


def errors(tokens: Tensor, pixels: Tensor, weight: float) -> tuple[float, float]:
    found = bridged(tokens, pixels, weight)
    matrix, bias = ridge(tokens, pixels)
    lost = (found - tokens).square().mean(), (found @ matrix.T + bias - pixels).square().mean()
    return float(lost[0]), float(lost[1])


def test_without_pixels_it_is_the_principal_components(rows: tuple[Tensor, Tensor]) -> None:
    tokens, pixels = rows
    components = principal_components(tokens, LATENTS)
    basis = components.directions
    expected = (tokens - components.mean) @ basis.T @ basis + components.mean
    assert torch.allclose(bridged(tokens, None, 0.0), expected, atol=1e-4)
    assert bridged(tokens, pixels, 0.0).equal(bridged(tokens, None, 0.0))
    project, restore = painting_components(tokens, pixels, 0.0, LATENTS)
    assert torch.allclose(restore @ project, basis.T @ basis, atol=1e-3)


def test_pixels_are_kept_at_little_cost_in_tokens(rows: tuple[Tensor, Tensor]) -> None:
    tokens, pixels = rows
    alone, both = errors(tokens, pixels, 0.0), errors(tokens, pixels, 5.0)
    assert alone[1] > 0.5 * float(pixels.var())  # the components of tokens do not hold them
    assert both[1] < 0.05 * alone[1]
    assert alone[0] < both[0] < 4 * alone[0]


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_no_other_linear_bridge_loses_less(rows: tuple[Tensor, Tensor], weight: float) -> None:
    tokens, pixels = rows
    matrix, _ = ridge(tokens, pixels)
    x = tokens - tokens.mean(0)
    project, restore = painting_components(tokens, pixels, weight, LATENTS)

    def loss(project: Tensor, restore: Tensor) -> float:
        lost = x @ project.T @ restore.T - x
        return float(lost.square().sum() + (weight * lost @ matrix.T).square().sum())

    best = loss(project, restore)
    for _ in range(20):
        moved = [part + 0.02 * part.std() * torch.randn_like(part) for part in (project, restore)]
        assert loss(*moved) > best
    assert loss(project, restore) < loss(*painting_components(tokens, pixels, 0.0, LATENTS))
