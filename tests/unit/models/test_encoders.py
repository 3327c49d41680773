"""Published encoders at small sizes: built offline, at any grid, tokens normalised."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.encoder import (
    PretrainedEncoderConfig,
    SmallViTConfig,
    build_encoder,
    encoder_config,
    resize_images,
)
from models.presets import ENCODERS
from models.pretrained_encoder import PretrainedEncoder
from models.weights import without_weights


def small(kind: str) -> PretrainedEncoderConfig:
    return replace(
        ENCODERS[kind], width=32, depth=2, num_heads=4, hidden_width=128, position_grid=5
    )


@pytest.fixture(params=list(ENCODERS))
def encoder(request: pytest.FixtureRequest) -> PretrainedEncoder:
    torch.manual_seed(0)
    model = PretrainedEncoder(small(request.param)).eval().requires_grad_(False)
    for parameter in model.parameters():  # LayerScale and positions start near zero
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def test_tokens_are_those_of_patches_with_mean_zero_and_variance_one(
    encoder: PretrainedEncoder,
) -> None:
    tokens = encoder(torch.rand(2, 3, 256, 256))
    assert tokens.shape == (2, 256, 32)
    assert torch.allclose(tokens.mean(-1), torch.zeros(2, 256), atol=1e-5)
    assert torch.allclose(tokens.var(-1, unbiased=False), torch.ones(2, 256), atol=1e-3)


def test_attention_is_fused(encoder: PretrainedEncoder) -> None:
    assert encoder.model.config._attn_implementation == "sdpa"


def test_tokens_keep_the_order_of_the_patches(encoder: PretrainedEncoder) -> None:
    """What changes one patch changes that patch's token most, twice in a row alike."""
    patch = encoder.config.patch_size
    side = encoder.config.image_size
    images = torch.rand(1, 3, side, side)
    changed = images.clone()
    changed[..., 3 * patch : 4 * patch, 5 * patch : 6 * patch] = 0
    tokens = encoder(images)
    moved = (encoder(changed) - tokens).square().sum(-1)[0]
    assert int(moved.argmax()) == 3 * encoder.config.grid + 5
    assert torch.equal(encoder(images), tokens)


def test_another_grid_interpolates_positions(encoder: PretrainedEncoder) -> None:
    images = torch.rand(1, 3, 96, 160)
    tokens = encoder(images, (6, 10))
    assert tokens.shape == (1, 60, 32)
    patch = encoder.config.patch_size
    resized = resize_images(images, (6 * patch, 10 * patch))
    assert torch.equal(encoder(resized, (6, 10)), tokens)


def test_rows_do_not_depend_on_each_other(encoder: PretrainedEncoder) -> None:
    images = torch.rand(3, 3, 64, 64)
    alone = torch.cat([encoder(image[None]) for image in images])
    assert torch.allclose(encoder(images), alone, atol=1e-5)


@pytest.mark.parametrize("kind", list(ENCODERS))
def test_full_sizes_cost_no_memory_before_their_weights(kind: str) -> None:
    model = without_weights(lambda: build_encoder(ENCODERS[kind]))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    # DINOv2-B with registers, without the last norm's affine: method's own count.
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (
        num_parameters
        == {
            "dinov2-b": 86_582_016,
            "siglip2-b": 85_841_664,
            "mae-b": 85_797_120,
        }[kind]
    )


def test_configs_are_told_apart_by_kind() -> None:
    assert encoder_config(width=48, num_heads=4) == SmallViTConfig(width=48, num_heads=4)
    fields = {"kind": "mae", "pixel_mean": [0.1, 0.2, 0.3]}
    config = encoder_config(**fields)
    assert isinstance(config, PretrainedEncoderConfig)
    assert config.pixel_mean == (0.1, 0.2, 0.3)
    with pytest.raises(ValueError, match="unknown encoder 'clip': one of dinov2-with-registers"):
        build_encoder(encoder_config(kind="clip"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 225}, "image_size 225 is not divisible by patch_size 14"),
        ({"num_heads": 7}, "width 768 is not divisible by num_heads 7"),
    ],
)
def test_sizes_that_do_not_fit(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainedEncoderConfig(**fields)


@pytest.mark.parametrize("images", [torch.rand(3, 8, 8), torch.rand(1, 4, 8, 8)])
def test_other_tensors_than_images_are_named(images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got"):
        build_encoder(small("dinov2-b"))(images)
