"""Tokenizer: shapes, normalization, posterior."""

import pytest
import torch

from models.autoencoder import RPiAE, RPiAEConfig
from models.bridge import BridgeConfig, Posterior
from models.decoder import PixelDecoderConfig
from models.encoder import SmallViTConfig
from models.layers import patchify, rotary_table, rotate, unpatchify
from models.pivot import PivotReplica, pivot_loss

SMALL = RPiAEConfig(
    encoder=SmallViTConfig(image_size=32, patch_size=8, width=32, depth=2, num_heads=4),
    bridge=BridgeConfig(token_width=32, latent_width=6, num_heads=4, decoder_depth=1),
    decoder=PixelDecoderConfig(
        token_width=32, grid=4, patch_size=8, width=32, depth=1, num_heads=4
    ),
)


@pytest.fixture
def model() -> RPiAE:
    torch.manual_seed(0)
    return RPiAE(SMALL).eval().requires_grad_(False)


def test_shapes(model: RPiAE) -> None:
    posterior = model.encode(torch.rand(2, 3, 32, 32))
    assert posterior.mean.shape == posterior.logvar.shape == (2, 6, 4, 4)
    assert model.decode(posterior.mean).shape == (2, 3, 32, 32)


def test_tokens_have_zero_mean_and_unit_variance(model: RPiAE) -> None:
    tokens = model.encoder(torch.rand(2, 3, 32, 32))
    assert torch.allclose(tokens.mean(-1), torch.zeros(2, 16), atol=1e-5)
    assert torch.allclose(tokens.var(-1, correction=0), torch.ones(2, 16), atol=1e-3)


def test_normalization_matches_its_definition_and_decode_undoes_it(model: RPiAE) -> None:
    images = torch.rand(2, 3, 32, 32)
    raw = model.encode(images)
    painted = model.decode(raw.mean)
    mean, std = [0.1 * i for i in range(6)], [1.0 + i for i in range(6)]
    model.set_normalization(mean, std)
    posterior = model.encode(images)
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    assert torch.allclose(posterior.mean, (raw.mean - shift) / scale, atol=1e-6)
    deviation = (0.5 * raw.logvar).exp() / scale
    assert torch.allclose((0.5 * posterior.logvar).exp(), deviation, atol=1e-6)
    assert torch.allclose(model.decode(posterior.mean), painted, atol=1e-5)
    with pytest.raises(ValueError, match="latents_std must be positive"):
        model.set_normalization([0.0], [0.0])


def test_kl_and_sample() -> None:
    standard = Posterior(torch.zeros(2, 5), torch.zeros(2, 5))
    assert torch.equal(standard.kl(), torch.zeros(2))
    shifted = Posterior(torch.full((1, 4), 2.0), torch.zeros(1, 4))
    assert shifted.kl().item() == pytest.approx(8.0)  # 4 * 2^2 / 2
    narrow = Posterior(torch.ones(1, 9), torch.full((1, 9), -60.0))
    assert torch.allclose(narrow.sample(torch.Generator().manual_seed(0)), narrow.mean)


def test_pivot_replica_stays_frozen(model: RPiAE) -> None:
    replica = PivotReplica(model.encoder).train()
    images = torch.rand(1, 3, 32, 32)
    assert not replica.training
    assert not any(parameter.requires_grad for parameter in replica.parameters())
    assert pivot_loss(model.encoder(images), replica(images)) == 0
    model.encoder.embed.weight.add_(0.1)
    assert pivot_loss(model.encoder(images), replica(images)) > 0


def test_bad_sizes_are_named(model: RPiAE) -> None:
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\)"):
        model.encode(torch.rand(3, 32, 32))
    with pytest.raises(ValueError, match=r"latents must be \(B, 6, 4, 4\), got \(1, 6, 4, 5\)"):
        model.decode(torch.rand(1, 6, 4, 5))
    with pytest.raises(ValueError, match="token widths differ"):
        RPiAEConfig(encoder=SMALL.encoder, bridge=BridgeConfig(), decoder=SMALL.decoder)


def test_patchify_is_undone() -> None:
    x = torch.rand(2, 3, 8, 8)
    assert patchify(x, 4).shape == (2, 4, 48)
    assert torch.equal(unpatchify(patchify(x, 4), 4, 3), x)


def test_rotary_scores_depend_on_distance_only() -> None:
    table = rotary_table(4, 16)
    q, k = torch.randn(2, 16).unbind(0)
    scores = rotate(q.expand(16, 16), table) @ rotate(k.expand(16, 16), table).T
    grid = scores.reshape(4, 4, 4, 4)
    assert grid[0, 0, 1, 2].item() == pytest.approx(grid[2, 1, 3, 3].item(), abs=1e-4)
