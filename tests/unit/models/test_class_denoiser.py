"""The class-conditional denoiser: rows, contexts, autoguidance, other grids, loading."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.class_denoiser import (
    ClassContext,
    ClassDenoiser,
    ClassDenoiserConfig,
    autoguided_velocity,
)
from models.context import cat_contexts
from models.manifest import (
    DENOISER_FILE,
    BundleError,
    Manifest,
    write_manifest,
)
from models.presets import CLASS_DENOISERS
from models.weights import save_weights, without_weights

CONFIG = ClassDenoiserConfig(
    latent_channels=6, latent_side=4, width=32, depth=2, num_heads=4, num_classes=5
)


def make(seed: int) -> ClassDenoiser:
    torch.manual_seed(seed)
    model = ClassDenoiser(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():  # gates and head start at zero
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def denoiser() -> ClassDenoiser:
    return make(0)


@pytest.fixture
def rows() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(4, 6, 4, 4), torch.tensor([0.1, 0.5, 0.9, 1.0]), torch.tensor([0, 4, 2, 5])


def test_a_new_denoiser_predicts_zero() -> None:
    velocity = ClassDenoiser(CONFIG)(torch.randn(1, 6, 4, 4), torch.ones(1), torch.tensor([1]))
    assert torch.equal(velocity, torch.zeros(1, 6, 4, 4))


def test_rows_depend_on_their_own_time_and_label(
    denoiser: ClassDenoiser, rows: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, t, labels = rows
    together = denoiser(x, t, labels)
    for index in range(4):
        one = slice(index, index + 1)
        assert torch.allclose(denoiser(x[one], t[one], labels[one]), together[one], atol=1e-5)
    assert not torch.allclose(denoiser(x, t, labels.flip(0)), together, atol=1e-3)
    assert not torch.allclose(denoiser(x, t.flip(0), labels), together, atol=1e-3)


def test_contexts_are_labels(denoiser: ClassDenoiser, rows: tuple[Tensor, Tensor, Tensor]) -> None:
    x, t, labels = rows
    context = cat_contexts([denoiser.prefill(labels[:1]), denoiser.prefill(labels[1:])])
    assert context.num_rows == 4
    assert torch.equal(denoiser.velocity(x, t, context), denoiser(x, t, labels))
    assert context.select([2, 0]).labels.tolist() == [2, 0]
    with pytest.raises(ValueError, match="takes no source latents"):
        denoiser.prefill(labels, x)


def test_rows_of_the_guide_are_the_guides(
    denoiser: ClassDenoiser, rows: tuple[Tensor, Tensor, Tensor]
) -> None:
    x, t, labels = rows
    guide = make(1)
    context = ClassContext(labels, torch.tensor([False, True, False, True]))
    mixed = autoguided_velocity(denoiser, guide, x, t, context)
    assert torch.allclose(mixed[::2], denoiser(x, t, labels)[::2], atol=1e-5)
    assert torch.allclose(mixed[1::2], guide(x, t, labels)[1::2], atol=1e-5)
    alone = autoguided_velocity(denoiser, guide, x, t, context.of_guide())
    assert torch.allclose(alone, guide(x, t, labels), atol=1e-5)
    with pytest.raises(ValueError, match="no guide model"):
        autoguided_velocity(denoiser, None, x, t, context)


def test_another_grid(denoiser: ClassDenoiser) -> None:
    x = torch.randn(1, 6, 6, 8)
    assert denoiser(x, torch.ones(1), torch.tensor([1])).shape == x.shape


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("lightningdit-s", 33),
        ("lightningdit-b", 131),
        ("lightningdit-l", 458),
        ("lightningdit-xl", 676),
    ],
)
def test_published_sizes(name: str, millions: int) -> None:
    model = without_weights(lambda: ClassDenoiser(CLASS_DENOISERS[name]))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    assert num_parameters / 1e6 == pytest.approx(millions, abs=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 15}, "width 1152 is not divisible by 4"),
        ({"num_classes": 0}, "num_classes must be >= 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassDenoiserConfig(**fields)


def write_bundle(directory: Path, model: dict[str, dict[str, object]]) -> None:
    manifest = Manifest(
        name="classes",
        tasks=["generate"],
        image_size=(16, 16),
        latent_shape=CONFIG.latent_shape,
        latents_mean=[0.0],
        latents_std=[1.0],
        timestep_shift=1.0,
        model=model,
    )
    write_manifest(directory, manifest)


def test_loading_from_a_bundle(
    denoiser: ClassDenoiser, rows: tuple[Tensor, Tensor, Tensor], tmp_path: Path
) -> None:
    write_bundle(tmp_path, {"denoiser": asdict(CONFIG)})
    save_weights(denoiser, tmp_path / DENOISER_FILE, torch.float32)
    assert torch.equal(ClassDenoiser.from_pretrained(str(tmp_path))(*rows), denoiser(*rows))


@pytest.mark.parametrize(
    ("model", "message"),
    [({"denoiser": {"kind": "text"}}, "no class-conditional denoiser"), ({}, "lacks denoiser")],
)
def test_bundles_of_another_kind(
    model: dict[str, dict[str, object]], message: str, tmp_path: Path
) -> None:
    write_bundle(tmp_path, model)
    with pytest.raises(BundleError, match=message):
        ClassDenoiser.from_pretrained(tmp_path)
