"""Weights in fewer bits: how wrong an output can be, how much memory is left, what stays exact."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.bridge import BridgeConfig
from models.bundle import Bundle, load_bundle
from models.class_denoiser import ClassDenoiser, ClassDenoiserConfig
from models.encoder import PretrainedEncoderConfig, build_encoder
from models.low_precision import LowPrecision, LowPrecisionLinear, lower_precision
from models.packed_linear import packed_bytes
from models.text_denoiser import TextDenoiser, TextDenoiserConfig
from training.metrics import psnr

PRECISIONS: tuple[LowPrecision, ...] = ("bf16", "int8", "fp8")


def int8_error(weight: Tensor) -> Tensor:
    """Half of a step, of which an output's largest weight has 127."""
    return (weight.abs().amax(1) / 127 / 2)[:, None].expand_as(weight)


def fp8_error(weight: Tensor) -> Tensor:
    """Half of the last of 3 bits of the number itself, or of the smallest number there is."""
    smallest = 2.0**-9 * weight.abs().amax(1) / 448
    return torch.maximum(weight.abs() / 16, (smallest / 2)[:, None])


def bf16_error(weight: Tensor) -> Tensor:
    return weight.abs() / 256


ERRORS: dict[LowPrecision, Callable[[Tensor], Tensor]] = {
    "bf16": bf16_error,
    "int8": int8_error,
    "fp8": fp8_error,
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_outputs_are_wrong_by_the_rounding_of_weights_at_most(
    precision: LowPrecision, bias: bool
) -> None:
    linear = nn.Linear(64, 48, bias=bias).requires_grad_(False)
    linear.weight.mul_(torch.logspace(-4, 2, 48)[:, None])  # outputs of very different sizes
    linear.weight[3] = 0
    x = torch.randn(2, 7, 64)
    low = LowPrecisionLinear(linear, precision, torch.float32)
    bound = x.abs() @ ERRORS[precision](linear.weight).T
    if precision == "bf16" and bias:  # which is not scaled, so it may be rounded with the weights
        bound = bound + linear.bias.abs() / 256
    wrong = (low(x) - linear(x)).abs()
    assert low(x).isfinite().all()
    assert (wrong <= bound + 1e-5 * linear(x).abs() + 1e-6).all()
    assert wrong[..., :3].max() > 0  # it is rounded at all


@pytest.mark.parametrize(("precision", "bits"), [("bf16", 16), ("int8", 8), ("fp8", 8)])
def test_memory_is_that_of_the_bits(precision: LowPrecision, bits: int) -> None:
    linear = nn.Linear(256, 512)
    low = LowPrecisionLinear(linear, precision, torch.bfloat16)
    extras = (low.bias.nbytes if low.bias is not None else 0) + (
        low.scale.nbytes if low.scale is not None else 0
    )
    assert packed_bytes(low) - extras == linear.weight.nbytes * bits // 32
    assert extras <= 2 * 4 * 512


@pytest.mark.parametrize(("precision", "share"), [("bf16", 0.505), ("int8", 0.26), ("fp8", 0.26)])
def test_the_published_denoiser_takes_a_half_or_a_quarter(
    precision: LowPrecision, share: float
) -> None:
    with torch.device("meta"):
        model = ClassDenoiser(ClassDenoiserConfig())
    whole = packed_bytes(model)
    lower_precision(model, precision, torch.bfloat16)
    assert packed_bytes(model) < share * whole


@pytest.mark.parametrize("precision", PRECISIONS)
def test_rows_do_not_depend_on_each_other(precision: LowPrecision) -> None:
    low = LowPrecisionLinear(nn.Linear(96, 80), precision, torch.bfloat16)
    x = torch.randn(16, 10, 96)
    together = low(x)
    for size in (1, 3, 8):
        torch.testing.assert_close(low(x[:size]), together[:size], rtol=2**-7, atol=1e-3)


def random_weights(module: nn.Module) -> nn.Module:
    for parameter in module.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return module.eval().requires_grad_(False)


def test_what_is_not_in_a_stack_stays_as_it_is() -> None:
    config = ClassDenoiserConfig(
        latent_channels=6, latent_side=4, width=64, depth=2, num_heads=4, num_classes=5
    )
    model = random_weights(ClassDenoiser(config))
    lower_precision(model, "int8", torch.float32)
    kept = {name for name, part in model.named_modules() if type(part) is nn.Linear}
    assert kept == {"embed", "time.mlp.0", "time.mlp.2", "final_modulation", "to_velocity"}
    lowered = [part for part in model.modules() if isinstance(part, LowPrecisionLinear)]
    assert len(lowered) == 2 * 5  # qkv, proj, w12, w3, modulation
    assert all(
        tensor.dtype == torch.float32
        for name, tensor in model.named_parameters()
        if not name.endswith("weight") or "norm" in name or "blocks" not in name
    )


def test_the_residual_stream_is_never_rounded() -> None:
    from models.bridge import BridgeEncoder

    config = BridgeConfig(
        token_width=32, latent_width=8, num_heads=2, decoder_depth=1, skip_projection=True
    )
    bridge = random_weights(BridgeEncoder(config))
    x = torch.randn(2, 5, 32)
    expected = bridge(x).mean
    lower_precision(bridge, "bf16", torch.bfloat16)
    assert bridge(x).mean.dtype == torch.float32
    torch.testing.assert_close(bridge(x).mean, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_qwen2_text_expert_and_sources(precision: LowPrecision) -> None:
    config = TextDenoiserConfig(
        latent_channels=8, latent_side=4, width=32, depth=2, num_heads=2, text_expert="qwen2",
        text_width=32, text_hidden_width=48, text_key_heads=1, vocabulary_size=20,
    )  # fmt: skip
    model = random_weights(TextDenoiser(config))
    assert isinstance(model, TextDenoiser)
    tokens, latents = torch.tensor([[3, 4, 5], [6, -1, -1]]), torch.randn(2, 8, 4, 4)
    t = torch.tensor([0.3, 0.9])
    with torch.inference_mode():
        expected = model.velocity(latents, t, model.prefill(tokens, latents))
        lower_precision(model, precision, torch.bfloat16)
        context = model.prefill(tokens, latents)
        found = model.velocity(latents, t, context)
    assert context.keys.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < {"bf16": 0.03, "int8": 0.04, "fp8": 0.15}[precision]


@pytest.mark.parametrize("kind", ["dinov2-with-registers", "siglip2", "mae"])
def test_published_encoders(kind: str) -> None:
    config = PretrainedEncoderConfig(
        kind=kind, image_size=28, patch_size=14, width=32, depth=2, num_heads=2,  # type: ignore[arg-type]
        hidden_width=64, position_grid=2,
    )  # fmt: skip
    encoder = build_encoder(config).eval().requires_grad_(False)
    images = torch.rand(2, 3, 28, 28)
    with torch.inference_mode():
        expected = encoder(images)
        lower_precision(encoder, "bf16", torch.bfloat16)
        found = encoder(images)
    assert any(isinstance(part, LowPrecisionLinear) for part in encoder.modules())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bundle_is_lowered_where_it_draws(tiny_bundle: Path, precision: LowPrecision) -> None:
    exact, lowered = load_bundle(tiny_bundle), load_bundle(tiny_bundle)
    lowered.lower(precision, torch.float32 if precision != "bf16" else torch.bfloat16)
    images = torch.rand(4, 3, 32, 32)

    def latents(bundle: Bundle) -> Tensor:
        return bundle.autoencoder.encode(images).latent_dist.mean

    with torch.inference_mode():
        same = torch.equal(latents(exact), latents(lowered))
        assert same == (precision != "bf16")  # weight-only leaves the encoder alone
        decoded = [one.autoencoder.decode(latents(exact)).sample for one in (exact, lowered)]
    assert psnr(decoded[1], decoded[0]).min() > {"bf16": 35, "int8": 35, "fp8": 20}[precision]
    assert sum(map(packed_bytes, lowered.modules)) < sum(map(packed_bytes, exact.modules))
