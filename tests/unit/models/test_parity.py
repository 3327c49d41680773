"""The published implementation's own numbers, reproduced from weights in its layout.

`tests/data/parity/README.md` says how the numbers were made. Modules agree to 1e-5, whole samplers
to 5e-5.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from export.dims import PublishedDims
from models.autoencoder import RPiAE
from models.class_denoiser import ClassDenoiser
from models.decoder import PixelDecoder
from models.encoder import build_encoder
from models.pivot import PivotReplica, pivot_loss
from models.presets import LIGHTNINGDIT_XL, RPIAE_C64
from models.published import (
    NameMap,
    class_denoiser_map,
    decoder_entries,
    encoder_entries,
    tokenizer_map,
)
from models.solvers import advance, plan_sampling
from models.transport import guide, interpolate, target_velocity
from models.weights import without_weights
from training.losses import adaptive_weight, kl_mean

PARITY = Path(__file__).parents[2] / "data" / "parity"
MODULE_TOLERANCE = 1e-5
SAMPLER_TOLERANCE = 5e-5
NUM_POINTS = 8
DIMS = PublishedDims.read(PARITY / "config.json")
NULL_CLASS = DIMS.dit.num_classes


def read(name: str) -> dict[str, Tensor]:
    return load_file(PARITY / f"{name}.safetensors")


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = MODULE_TOLERANCE) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).detach().abs().max()) <= tolerance


def to_map(tokens: Tensor) -> Tensor:
    side = DIMS.autoencoder().encoder.grid
    return tokens.transpose(1, 2).unflatten(2, (side, side))


@pytest.fixture(scope="module")
def tokenizer() -> RPiAE:
    model = RPiAE(DIMS.autoencoder()).eval().requires_grad_(False)
    names = tokenizer_map(model)
    model.load_state_dict(names.to_ours(read("stage3_state"), model.state_dict(), "stage 3"))
    return model


def denoiser(state: str) -> ClassDenoiser:
    model = ClassDenoiser(DIMS.denoiser()).eval().requires_grad_(False)
    names = class_denoiser_map(model)
    model.load_state_dict(names.to_ours(read(state), model.state_dict(), state))
    return model


class StageOne(nn.Module):
    """What a stage-1 checkpoint holds: encoder, pivot replica and pixel decoder, no bridge."""

    def __init__(self) -> None:
        super().__init__()
        config = DIMS.autoencoder()
        self.encoder = build_encoder(config.encoder)
        self.pivot = PivotReplica(self.encoder)
        self.decoder = PixelDecoder(config.decoder)
        names = list(self.encoder.state_dict())
        entries = [
            *encoder_entries(names, "encoder.", "encoder.encoder."),
            *encoder_entries(names, "pivot.encoder.", "teacher_encoder.encoder."),
            *decoder_entries(config.decoder.depth),
        ]
        name_map = NameMap(entries=tuple(entries), constants={}, defaults={})
        self.load_state_dict(name_map.to_ours(read("stage1_state"), self.state_dict(), "stage 1"))


def test_encoder_bridge_and_pixel_decoder(tokenizer: RPiAE) -> None:
    expected = read("stage3_io")
    tokens = tokenizer.encoder(expected["image"])
    posterior = tokenizer.encode(expected["image"]).latent_dist
    bridged = tokenizer.bridge_decoder(posterior.mean.flatten(2).transpose(1, 2))
    assert_close(to_map(tokens), expected["encoder_tokens_map"])
    assert_close(posterior.mean, expected["posterior_mean"])
    assert_close(posterior.mode(), expected["latents"])
    assert_close(posterior.logvar, expected["posterior_logvar"])
    assert_close(to_map(bridged), expected["bridged_tokens_map"])
    assert_close(tokenizer.decode(expected["latents"]).sample, expected["reconstruction"])
    random = tokenizer.decode(expected["random_latents"]).sample
    assert_close(random, expected["decoded_random_latents"])
    assert_close(kl_mean(posterior.mean, posterior.logvar), expected["kl_mean"])
    assert_close(functional.mse_loss(bridged, tokens), expected["feature_mse"])


def test_a_picture_of_another_size_is_stretched(tokenizer: RPiAE) -> None:
    expected = read("stage3_io")
    latents = tokenizer.encode(expected["image_other_size"]).latent_dist.mean
    assert_close(latents, expected["latents_other_size"])


def test_stage_one_with_both_adaptive_weights() -> None:
    expected, model = read("stage1_io"), StageOne()
    tokens, pivot_tokens = model.encoder(expected["image"]), model.pivot(expected["image"])
    images = model.decoder(tokens)
    l1 = functional.l1_loss(images, expected["image"])
    distance = pivot_loss(tokens, pivot_tokens)
    assert_close(to_map(tokens), expected["tokens_map"])
    assert_close(to_map(pivot_tokens), expected["pivot_tokens_map"])
    assert_close(images, expected["reconstruction"])
    assert_close(l1, expected["l1"])
    assert_close(distance, expected["pivot_mse"])
    last = dict(model.encoder.named_parameters())
    block = f"model.encoder.layer.{DIMS.encoder.num_hidden_layers - 1}"
    for parameter, name in (
        ("layer_scale2.lambda1", "adaptive_weight_last_param"),
        ("mlp.fc2.weight", "adaptive_weight_mlp_fc2"),
    ):
        weight = adaptive_weight(l1, distance, last[f"{block}.{parameter}"])
        assert_close(weight, expected[name])


def test_velocity_of_the_class_denoiser() -> None:
    expected = read("dit_io")
    velocity = denoiser("dit_state")(expected["latents"], expected["t"], expected["labels"])
    assert_close(velocity, expected["velocity"])


def test_path_and_loss_of_the_denoisers_training() -> None:
    expected = read("dit_io")
    data, noise, t = expected["train_x1"], expected["train_x0_noise"], expected["t"]
    x = interpolate(data, noise, t)
    target = target_velocity(data, noise)
    velocity = denoiser("dit_state")(x, t, expected["labels"])
    assert_close(x, expected["train_xt"])
    assert_close(target, expected["train_target_velocity"])
    loss = (velocity - target).square().flatten(1).mean(1)
    assert_close(loss, expected["train_loss_per_sample"])


@pytest.mark.parametrize(
    ("name", "scale", "guide_state"),
    [
        ("euler_8_nocfg", 1.0, None),
        ("euler_8_cfg3", 3.0, "dit_state"),
        ("euler_8_autoguidance2", 2.05, "dit_weak_state"),
    ],
)
def test_euler_on_the_reference_grid(name: str, scale: float, guide_state: str | None) -> None:
    """Guidance starts from the null class of the same model, or from the same class of a guide."""
    expected, model = read("dit_io"), denoiser("dit_state")
    labels = expected["sample_labels"]
    plan = plan_sampling("euler-reference", NUM_POINTS, DIMS.timestep_shift())
    states = torch.stack([plan.initial_state(x) for x in expected["latents"]])
    for t, matrix in zip(plan.times, plan.maps, strict=True):
        x, times = states[:, 0], torch.full((len(labels),), t)
        velocity = model(x, times, labels)
        if guide_state is not None:
            same = guide_state == "dit_state"
            other = denoiser(guide_state)
            base = other(x, times, torch.full_like(labels, NULL_CLASS) if same else labels)
            velocity = guide(velocity, base, torch.full((len(labels),), scale))
        states = advance(states, velocity, matrix.expand(len(labels), -1, -1))
    assert_close(states[:, 0], expected[name], SAMPLER_TOLERANCE)


def test_time_grid() -> None:
    grid = read("dit_io")["euler_8_time_grid"]
    plan = plan_sampling("euler-reference", NUM_POINTS, DIMS.timestep_shift())
    assert_close(torch.tensor(plan.times), grid[:-1], 1e-6)
    # The last map steps to the grid's last point.
    x, velocity = plan.maps[-1][0]
    assert float(x) == 1
    assert float(velocity) == pytest.approx(float(grid[-1] - grid[-2]), abs=1e-6)


def layout(published: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in published.items()}


def test_full_size_presets_have_the_published_layout() -> None:
    """Name by name and shape by shape, on the meta device."""
    expected = json.loads((PARITY / "published_layout.json").read_text(encoding="utf-8"))
    tokenizer = without_weights(lambda: RPiAE(RPIAE_C64))
    published = tokenizer_map(tokenizer).to_published(tokenizer.state_dict())
    assert layout(published) == expected["rpiae_stage3_c64"]
    assert sum(tensor.numel() for tensor in published.values()) == 549_338_112
    model = without_weights(lambda: ClassDenoiser(LIGHTNINGDIT_XL))
    published = class_denoiser_map(model).to_published(model.state_dict())
    assert layout(published) == expected["lightningdit_xl_c64_imagenet"]
    assert sum(parameter.numel() for parameter in model.parameters()) == 675_629_696


@pytest.mark.parametrize("state", ["dit_state", "stage3_state"])
def test_names_go_both_ways(state: str) -> None:
    model: ClassDenoiser | RPiAE
    if state == "dit_state":
        model = ClassDenoiser(DIMS.denoiser())
        names = class_denoiser_map(model)
    else:
        model = RPiAE(DIMS.autoencoder())
        names = tokenizer_map(model)
    published = read(state)
    back = names.to_published(names.to_ours(published, model.state_dict(), state))
    assert back.keys() == published.keys()
    assert all(torch.equal(back[name], published[name]) for name in published)
