"""LPIPS against a computation by hand on random weights, and what happens without good weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from models.manifest import BundleError
from training.checkpoint import CheckpointError
from training.config import AutoencoderConfig, OptimConfig
from training.losses import gradient_loss
from training.perceptual import Lpips, make_image_loss

# (number in torchvision's `features`, in, out); a new list where a max-pool stands between.
BLOCKS = (
    ((0, 3, 64), (2, 64, 64)),
    ((5, 64, 128), (7, 128, 128)),
    ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
    ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
    ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
)


@pytest.fixture(scope="module")
def vgg() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {"classifier.0.weight": torch.zeros(2, 2)}
    for block in BLOCKS:
        for number, width, channels in block:
            weight = torch.randn(channels, width, 3, 3, generator=generator)
            state[f"features.{number}.weight"] = weight * (2 / (9 * width)) ** 0.5
            state[f"features.{number}.bias"] = 0.1 * torch.randn(channels, generator=generator)
    return state


@pytest.fixture(scope="module")
def heads() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{index}.model.1.weight": torch.rand(1, block[-1][2], 1, 1, generator=generator)
        for index, block in enumerate(BLOCKS)
    }


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, vgg: dict[str, Tensor], heads: dict[str, Tensor]
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lpips")
    torch.save(vgg, folder / "vgg16.pth")
    save_file(heads, folder / "lpips.safetensors")
    return folder / "vgg16.pth", folder / "lpips.safetensors"


def by_hand(x: Tensor, y: Tensor, vgg: dict[str, Tensor], heads: dict[str, Tensor]) -> Tensor:
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    both = (torch.cat([x, y]) - shift) / scale
    total = torch.zeros(len(x))
    for index, block in enumerate(BLOCKS):
        if index:
            both = functional.max_pool2d(both, 2)
        for number, _, _ in block:
            weight, bias = vgg[f"features.{number}.weight"], vgg[f"features.{number}.bias"]
            both = functional.conv2d(both, weight, bias, padding=1).relu()
        unit = both / (both.square().sum(1, keepdim=True).sqrt() + 1e-10)
        ours, wanted = unit.chunk(2)
        weights = heads[f"lin{index}.model.1.weight"][0]
        total += ((ours - wanted).square() * weights).sum(1).mean((1, 2))
    return total


def images(seed: int) -> Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(seed))


def config_with(**fields: object) -> AutoencoderConfig:
    return AutoencoderConfig(
        name="tiny", stage="decoder", steps=1, batch_size=1, optim=OptimConfig(lr=1e-3), **fields
    )


def test_distances_are_those_of_the_formula(
    files: tuple[Path, Path], vgg: dict[str, Tensor], heads: dict[str, Tensor]
) -> None:
    x, y = 2 * images(0) - 1, 2 * images(1) - 1
    lpips = Lpips.load(*files)
    torch.testing.assert_close(lpips(x, y), by_hand(x, y, vgg, heads))
    assert lpips(x, x).abs().max() == 0
    torch.testing.assert_close(lpips(x, y), lpips(y, x))


def test_gradients_are_finite_also_where_no_feature_answers(files: tuple[Path, Path]) -> None:
    lpips = Lpips.load(*files)
    with torch.no_grad():
        lpips.features[28].bias.fill_(-100)  # the last map is 0 everywhere
    x = (2 * images(0) - 1).requires_grad_()
    lpips(x, 2 * images(1) - 1).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.norm() > 0
    assert all(parameter.grad is None for parameter in lpips.parameters())


def test_the_image_loss_is_l1_and_lpips(files: tuple[Path, Path]) -> None:
    vgg_file, lpips_file = (str(file) for file in files)
    config = config_with(vgg_weights=vgg_file, lpips_weights=lpips_file, lpips_weight=0.5)
    loss, name = make_image_loss(config)
    x, y = images(0), images(1)
    distance = Lpips.load(*files)(2 * x - 1, 2 * y - 1).mean()
    torch.testing.assert_close(loss(x, y), (x - y).abs().mean() + 0.5 * distance)
    assert name.startswith("LPIPS on VGG16")
    assert vgg_file in name


def test_without_weights_the_stand_in_is_used_and_named() -> None:
    loss, name = make_image_loss(config_with(gradient_weight=0.3))
    x, y = images(0), images(1)
    torch.testing.assert_close(loss(x, y), (x - y).abs().mean() + 0.3 * gradient_loss(x, y))
    assert "stands in for LPIPS" in name


def test_one_file_of_two_is_refused() -> None:
    with pytest.raises(ValueError, match="needs both vgg_weights and lpips_weights"):
        config_with(vgg_weights="vgg16.pth")


def test_tensors_that_do_not_fit_are_listed(
    files: tuple[Path, Path], vgg: dict[str, Tensor], heads: dict[str, Tensor], tmp_path: Path
) -> None:
    broken = {key: value for key, value in vgg.items() if key != "features.5.bias"}
    broken["features.0.weight"] = torch.zeros(64, 1, 3, 3)
    broken["features.1.weight"] = torch.zeros(1)
    torch.save(broken, tmp_path / "vgg.pth")
    with pytest.raises(BundleError) as raised:
        Lpips.load(tmp_path / "vgg.pth", files[1])
    for part in ("vgg.pth", "missing features.5.bias", "unexpected features.1.weight", "(64, 1, "):
        assert part in str(raised.value)
    fewer = {key: value for key, value in heads.items() if not key.startswith("lin3")}
    save_file(fewer, tmp_path / "heads.safetensors")
    with pytest.raises(BundleError, match=r"heads\.safetensors .* missing lin3\.model\.1\.weight"):
        Lpips.load(files[0], tmp_path / "heads.safetensors")


class Payload:
    """An object that a state dict has no business holding."""


def test_files_that_are_no_state_dicts_are_refused(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.pth"
    with pytest.raises(CheckpointError, match=r"vgg_weights: there is no file .*bad\.pth"):
        Lpips.load(bad, files[1])
    torch.save({"features.0.weight": Payload()}, bad)
    with pytest.raises(CheckpointError, match=r"vgg_weights: .*bad\.pth .*refused"):
        Lpips.load(bad, files[1])
    torch.save({"state": {"a": torch.zeros(1)}}, bad)
    with pytest.raises(CheckpointError, match=r"holds more than tensors \(state\)"):
        Lpips.load(bad, files[1])
    bad.write_bytes(files[0].read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"vgg_weights: .*bad\.pth"):
        Lpips.load(bad, files[1])
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files[1].read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"lpips_weights: .*cut\.safetensors cannot be read"):
        Lpips.load(files[0], cut)
