"""The pivot weight: where it compares gradients, its cap and warm-up; what the decoder sees."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.autoencoder import RPiAEConfig
from models.bridge import BridgeConfig
from models.decoder import PixelDecoder, PixelDecoderConfig
from models.encoder import PretrainedEncoderConfig, build_encoder
from models.pivot import PivotReplica, pivot_loss
from tests.unit.training.conftest import MODEL
from training.adversary import Adversary
from training.config import AutoencoderConfig, OptimConfig
from training.losses import noise_tokens
from training.perceptual import make_image_loss
from training.pivot import norm_parameter, pivot_step
from training.processes import Processes

DINO = PretrainedEncoderConfig(
    image_size=56,
    patch_size=14,
    width=32,
    depth=2,
    num_heads=2,
    hidden_width=64,
    position_grid=4,
    num_registers=2,
)
CONFIG = AutoencoderConfig(
    name="tiny",
    stage="pivot",
    encoder_folder="unused",
    steps=10,
    batch_size=2,
    optim=OptimConfig(lr=1e-3),
    model=RPiAEConfig(
        encoder=DINO,
        bridge=BridgeConfig(token_width=32, latent_width=8, num_heads=2),
        decoder=PixelDecoderConfig(token_width=32, width=32, depth=1, num_heads=2, grid=4),
    ),
    noise_tau=0.8,
    pivot_weight=0.75,
    pivot_weight_cap=1e5,
    pivot_norms_at="fc2",
    pivot_warmup_steps=3,
)
ONE = Processes(CONFIG.compute)


def parts() -> tuple[nn.Module, PixelDecoder, PivotReplica, Tensor]:
    """An encoder that has moved away from its replica, a decoder, and two images."""
    torch.manual_seed(0)
    encoder = build_encoder(DINO)
    replica = PivotReplica(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return encoder, PixelDecoder(CONFIG.model.decoder), replica, torch.rand(2, 3, 64, 64)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


def run_step(config: AutoencoderConfig, step: int, moved: bool = True) -> dict[str, float]:
    encoder, decoder, replica, images = parts()
    if not moved:
        encoder = copy.deepcopy(replica.encoder).requires_grad_(True)
    image_loss, _ = make_image_loss(config)
    adversary = Adversary(config, replica.encoder, ONE)
    return pivot_step(
        config,
        encoder,
        decoder,
        replica,
        images,
        generator(),
        image_loss=image_loss,
        adversary=adversary,
        step=step,
        processes=ONE,
    )


@pytest.mark.parametrize(
    ("at", "ending"), [("fc2", "layer.1.mlp.fc2.weight"), ("layer_scale", "layer_scale2.lambda1")]
)
def test_the_weight_is_the_ratio_of_gradients_at_the_parameter(at: str, ending: str) -> None:
    config = replace(CONFIG, pivot_norms_at=at)
    encoder, decoder, replica, images = parts()
    parameter = dict(encoder.named_parameters())[
        next(name for name, _ in reversed(list(encoder.named_parameters())) if ending in name)
    ]
    image_loss, _ = make_image_loss(config)
    tokens = encoder(images)
    base = image_loss(decoder(noise_tokens(tokens, 0.8, generator())), images)
    distance = pivot_loss(tokens, replica(images))
    norms = [
        torch.autograd.grad(loss, parameter, retain_graph=True)[0].norm().item()
        for loss in (base, distance)
    ]
    expected = 0.75 * norms[0] / (norms[1] + 1e-4)
    terms = run_step(config, step=3)
    assert terms["pivot_weight"] == pytest.approx(expected, rel=1e-3)
    assert terms["image"] == pytest.approx(base.item(), rel=1e-5)  # of noised tokens
    assert terms["pivot"] == pytest.approx(distance.item(), rel=1e-4)  # of clean ones


@pytest.mark.parametrize("gan_weight", [0.0, 0.75])
def test_the_step_leaves_the_gradient_of_the_weighted_sum(gan_weight: float) -> None:
    config = replace(CONFIG, gan_weight=gan_weight)
    encoder, decoder, replica, images = parts()
    twin_encoder, twin_decoder = copy.deepcopy(encoder), copy.deepcopy(decoder)
    image_loss, _ = make_image_loss(config)
    adversary = Adversary(config, replica.encoder, ONE)
    terms = pivot_step(
        config,
        encoder,
        decoder,
        replica,
        images,
        generator(),
        image_loss=image_loss,
        adversary=adversary,
        step=5,
        processes=ONE,
    )
    tokens = twin_encoder(images)
    painted = twin_decoder(noise_tokens(tokens, 0.8, generator()))
    loss = image_loss(painted, images)
    if gan_weight:
        last = twin_decoder.to_pixels.weight
        loss = loss + adversary.painter_term(loss, painted, last, step=5)[0]
    (loss + terms["pivot_weight"] * pivot_loss(tokens, replica(images))).backward()
    for ours, wanted in ((encoder, twin_encoder), (decoder, twin_decoder)):
        for a, b in zip(ours.parameters(), wanted.parameters(), strict=True):
            if b.grad is None:
                assert a.grad is None
            else:
                torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-3)


def test_the_pivot_weighs_without_the_adversary_and_the_encoder_feels_both() -> None:
    plain = run_step(CONFIG, step=3)
    fought = run_step(replace(CONFIG, gan_weight=0.75), step=3)
    assert fought["pivot_weight"] == pytest.approx(plain["pivot_weight"], rel=1e-4)
    assert fought["image"] == plain["image"]
    assert fought["gan_weight"] > 0
    assert "gan" not in plain


@pytest.mark.parametrize("at", ["tokens", "fc2", "layer_scale"])
def test_the_weight_is_constant_in_the_warm_up(at: str) -> None:
    config = replace(CONFIG, pivot_norms_at=at)
    for step in range(3):
        assert run_step(config, step)["pivot_weight"] == 0.75
    assert run_step(config, 3)["pivot_weight"] != 0.75


def test_an_encoder_that_has_not_moved_is_capped() -> None:
    still = run_step(CONFIG, step=3, moved=False)
    assert still["pivot"] == 0
    capped = replace(CONFIG, pivot_weight_cap=2.0)
    assert run_step(capped, step=3, moved=False)["pivot_weight"] == pytest.approx(0.75 * 2)
    at_tokens = replace(capped, pivot_norms_at="tokens")
    assert run_step(at_tokens, step=3, moved=False)["pivot_weight"] == 2.0


def test_small_encoders_have_an_output_weight_and_no_scale() -> None:
    encoder = build_encoder(MODEL.encoder)
    assert norm_parameter(encoder, "fc2") is encoder.blocks[-1].mlp.w3.weight
    with pytest.raises(ValueError, match="pivot_norms_at layer_scale: no parameter"):
        norm_parameter(encoder, "layer_scale")
    with pytest.raises(ValueError, match="layer_scale: an encoder of kind small-vit has none"):
        replace(CONFIG, model=MODEL, pivot_norms_at="layer_scale")


def test_the_stage_starts_from_one_place() -> None:
    with pytest.raises(ValueError, match=r"either from a run .* or from encoder_folder"):
        replace(CONFIG, after="other")
    with pytest.raises(ValueError, match="got None and None"):
        replace(CONFIG, encoder_folder=None)
