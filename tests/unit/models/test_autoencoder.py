"""Tokenizer: shapes, normalization, posterior, files."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.autoencoder import RPiAE, RPiAEConfig
from models.bridge import BridgeConfig, Posterior
from models.bundle import load_bundle
from models.decoder import PixelDecoderConfig
from models.encoder import SmallViTConfig
from models.manifest import BundleError
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
    posterior = model.encode(torch.rand(2, 3, 32, 32)).latent_dist
    assert posterior.mean.shape == posterior.logvar.shape == (2, 6, 4, 4)
    assert model.decode(posterior.mean).sample.shape == (2, 3, 32, 32)


def test_tokens_have_zero_mean_and_unit_variance(model: RPiAE) -> None:
    tokens = model.encoder(torch.rand(2, 3, 32, 32))
    assert torch.allclose(tokens.mean(-1), torch.zeros(2, 16), atol=1e-5)
    assert torch.allclose(tokens.var(-1, correction=0), torch.ones(2, 16), atol=1e-3)


def test_normalization_matches_its_definition_and_decode_undoes_it(model: RPiAE) -> None:
    images = torch.rand(2, 3, 32, 32)
    raw = model.encode(images).latent_dist
    painted = model.decode(raw.mean).sample
    mean, std = [0.1 * i for i in range(6)], [1.0 + i for i in range(6)]
    model.set_normalization(mean, std)
    posterior = model.encode(images).latent_dist
    shift, scale = (torch.tensor(values)[:, None, None] for values in (mean, std))
    assert torch.allclose(posterior.mean, (raw.mean - shift) / scale, atol=1e-6)
    deviation = (0.5 * raw.logvar).exp() / scale
    assert torch.allclose((0.5 * posterior.logvar).exp(), deviation, atol=1e-6)
    assert torch.allclose(model.decode(posterior.mean).sample, painted, atol=1e-5)
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
    with pytest.raises(ValueError, match=r"latents must be \(B, 6, h, w\), got \(1, 5, 4, 4\)"):
        model.decode(torch.rand(1, 5, 4, 4))
    with pytest.raises(ValueError, match="token widths differ"):
        RPiAEConfig(encoder=SMALL.encoder, bridge=BridgeConfig(), decoder=SMALL.decoder)


def test_pictures_of_another_grid(model: RPiAE) -> None:
    """Cells of the same size, more or fewer of them; the trained grid stays the default."""
    images = torch.rand(2, 3, 24, 48)
    posterior = model.encode(images, grid=(3, 6)).latent_dist
    assert posterior.mean.shape == posterior.logvar.shape == (2, 6, 3, 6)
    assert model.decode(posterior.mean).sample.shape == images.shape
    assert model.encode(images).latent_dist.mean.shape == (2, 6, 4, 4)


def test_save_and_load_give_the_same_tokenizer(model: RPiAE, tmp_path: Path) -> None:
    model.set_normalization([0.5], [2.0])
    model.save_pretrained(tmp_path / "tokenizer")
    loaded = RPiAE.from_pretrained(tmp_path / "tokenizer")
    assert loaded.config == model.config
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    manifest = load_bundle(tmp_path / "tokenizer").manifest
    assert (manifest.name, manifest.tasks) == ("tokenizer", ["encode", "decode"])
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_a_tokenizer_of_a_name_that_no_model_can_have(model: RPiAE, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be called 'my tokenizer'"):
        model.save_pretrained(tmp_path / "my tokenizer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bridge": None}, "model lacks bridge"),
        ({"decoder": {"grid": 4, "shape": 3}}, "model.decoder: .*shape"),
        ({"encoder": {"kind": "small-vit", "image_size": 9}}, "model.encoder: image_size 9"),
        ({"bridge": {"latent_width": 6}}, "model: token widths differ"),
    ],
)
def test_manifests_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    parts = {name: asdict(getattr(SMALL, name)) for name in ("encoder", "bridge", "decoder")}
    fields = {name: part for name, part in (parts | change).items() if part is not None}
    with pytest.raises(BundleError, match=message):
        RPiAEConfig.from_fields(fields)


IDENTITY = replace(
    SMALL, bridge=BridgeConfig(kind="identity", token_width=32, latent_width=32, num_heads=4)
)


def test_latents_of_an_identity_bridge_are_the_tokens() -> None:
    model = RPiAE(IDENTITY).eval().requires_grad_(False)
    images = torch.rand(2, 3, 32, 32)
    tokens = model.encoder(images)
    posterior = model.encode(images).latent_dist
    assert posterior.mean.flatten(2).transpose(1, 2).equal(tokens)
    assert torch.allclose(posterior.sample(), posterior.mean, atol=1e-5)
    assert model.decode(posterior.mean).sample.equal(model.decoder(tokens, (4, 4)))
    assert model.latent_shape == (32, 4, 4)
    assert {name for name, _ in model.named_parameters() if "bridge" in name} == set()


def test_an_identity_bridge_comes_back_from_its_folder(tmp_path: Path) -> None:
    model = RPiAE(IDENTITY).eval()
    model.set_normalization([0.5], [2.0])
    model.save_pretrained(tmp_path / "tokens")
    again = RPiAE.from_pretrained(tmp_path / "tokens")
    assert again.config == IDENTITY
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert again.encode(images).latent_dist.mean.equal(model.encode(images).latent_dist.mean)


def test_a_manifest_that_names_no_kind_of_bridge_means_the_transformer() -> None:
    fields = {name: asdict(getattr(SMALL, name)) for name in ("encoder", "bridge", "decoder")}
    assert fields["bridge"].pop("kind") == "transformer"
    assert RPiAEConfig.from_fields(fields) == SMALL


@pytest.mark.parametrize(
    ("fields", "told"),
    [({"kind": "identity"}, "needs latent_width 32 = token_width 192"), ({"kind": "none"}, "none")],
)
def test_a_bridge_that_cannot_be_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        BridgeConfig(**fields)
