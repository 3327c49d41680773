"""The discriminator: which tokens it looks at, what its heads compute, and what stays frozen."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.discriminator import (
    DinoConfig,
    DinoEncoder,
    Discriminator,
    FrozenFeatures,
    Head,
)
from models.encoder import PretrainedEncoderConfig, SmallViT, SmallViTConfig, build_encoder
from models.positions import patchify

SMALL = SmallViTConfig(image_size=64, width=32, depth=6, num_heads=2)
TINY_DINO = DinoConfig(image_size=32, width=16, depth=4, num_heads=2)


@pytest.fixture
def small_vit() -> SmallViT:
    torch.manual_seed(0)
    encoder = SmallViT(SMALL)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder


def test_heads_on_dino_have_the_published_size() -> None:
    with torch.device("meta"):
        discriminator = Discriminator(DinoConfig().width)
        dino = DinoEncoder(DinoConfig())
    assert sum(p.numel() for p in discriminator.parameters()) == 7_386_245
    assert sum(p.numel() for p in dino.parameters()) == 21_670_272


def test_maps_are_the_last_block_and_four_on_the_way(small_vit: SmallViT) -> None:
    images = torch.rand(2, 3, 64, 64)
    x = small_vit.embed(patchify(2 * images - 1, SMALL.patch_size)) + small_vit.position
    after = []
    for block in small_vit.blocks:
        x = block(x, small_vit.rotary)
        after.append(x.transpose(1, 2))
    maps = FrozenFeatures(small_vit)(images)
    # Quarters of six blocks, counted from 1: 2, 3, 5 and 6.
    for found, index in zip(maps, (5, 1, 2, 4, 5), strict=True):
        torch.testing.assert_close(found, after[index])


def test_maps_of_dino_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        dino = DinoEncoder(DinoConfig())
        features = FrozenFeatures(dino)
    numbers = [list(dino.model.layers).index(block) for block in features._blocks]
    assert numbers == [2, 5, 8, 11]
    maps = FrozenFeatures(DinoEncoder(TINY_DINO))(torch.rand(2, 3, 48, 40))
    assert [tuple(tokens.shape) for tokens in maps] == [(2, 16, 16)] * 5  # 4 x 4 patches
    assert maps[0].equal(maps[-1])


@pytest.mark.parametrize(
    ("kind", "num_registers"), [("dinov2-with-registers", 3), ("siglip2", 0), ("mae", 0)]
)
def test_class_token_and_registers_are_dropped(kind: str, num_registers: int) -> None:
    config = PretrainedEncoderConfig(
        kind=kind,
        image_size=32,
        patch_size=8,
        width=16,
        depth=4,
        num_heads=2,
        hidden_width=32,
        position_grid=4,
        num_registers=num_registers,
    )
    maps = FrozenFeatures(build_encoder(config))(torch.rand(2, 3, 32, 32))
    assert [tuple(tokens.shape) for tokens in maps] == [(2, 16, 16)] * 5


def test_gradients_reach_the_images_and_not_the_encoder(small_vit: SmallViT) -> None:
    features = FrozenFeatures(small_vit)
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    Discriminator(SMALL.width)(features(images)).sum().backward()
    assert images.grad is not None
    assert images.grad.norm() > 0
    assert all(parameter.grad is None for parameter in small_vit.parameters())
    assert not features.train().encoder.training
    assert not small_vit.blocks[0]._forward_hooks  # the encoder is used elsewhere too


def test_an_encoder_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no list of blocks"):
        FrozenFeatures(nn.Linear(2, 2))


def image_norm(x: Tensor, layer: nn.InstanceNorm1d) -> Tensor:
    mean, var = x.mean(2, keepdim=True), x.var(2, correction=0, keepdim=True)
    return (x - mean) / (var + 1e-6).sqrt() * layer.weight[:, None] + layer.bias[:, None]


def test_a_head_is_its_formula() -> None:
    torch.manual_seed(1)
    head = Head(8).eval()
    for name, parameter in head.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter)
    tokens = torch.randn(3, 8, 20)
    mixed = functional.conv1d(tokens, head.mix.conv.weight, head.mix.conv.bias)
    x = functional.leaky_relu(image_norm(mixed, head.mix.norm), 0.2)
    around = torch.cat([x[..., -4:], x, x[..., :4]], dim=-1)
    looked = functional.conv1d(around, head.look.conv.weight, head.look.conv.bias)
    x = (x + functional.leaky_relu(image_norm(looked, head.look.norm), 0.2)) / math.sqrt(2)
    logits = (head.to_logits.weight[0, :, 0] @ x) + head.to_logits.bias
    torch.testing.assert_close(head(tokens), logits)


def test_every_layer_has_spectral_norm_one() -> None:
    torch.manual_seed(2)
    head = Head(8).train()
    for _ in range(50):
        head(torch.randn(1, 8, 12))
    head.eval()
    for layer in (head.mix.conv, head.look.conv, head.to_logits):
        norm = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
        assert norm.item() == pytest.approx(1, abs=1e-3)


def test_an_image_is_judged_without_its_neighbours() -> None:
    torch.manual_seed(3)
    discriminator = Discriminator(8).eval()
    maps = [torch.randn(3, 8, 10) for _ in range(5)]
    together = discriminator(maps)
    assert together.shape == (3, 50)
    alone = discriminator([tokens[1:2] for tokens in maps])
    torch.testing.assert_close(alone, together[1:2])


def test_in_eval_mode_no_state_moves() -> None:
    discriminator = Discriminator(8).eval()
    before = {key: value.clone() for key, value in discriminator.state_dict().items()}
    maps = [torch.randn(1, 8, 10) for _ in range(5)]
    discriminator(maps)
    assert all(value.equal(before[key]) for key, value in discriminator.state_dict().items())
    discriminator.train()(maps)
    assert not all(value.equal(before[key]) for key, value in discriminator.state_dict().items())


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="image_size 30 is not divisible by patch_size 8"):
        DinoConfig(image_size=30)
    with pytest.raises(ValueError, match="width 384 is not divisible by num_heads 5"):
        DinoConfig(num_heads=5)
