"""The Inception of the FID: published names and sizes, its pooling, and strict loading."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from models.manifest import BundleError
from models.weights import without_weights
from training import inception
from training.checkpoint import CheckpointError
from training.inception import Inception, Mixed

# From the published state dict: weights of one layer of every kind of block.
PUBLISHED = {
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
    "Conv2d_3b_1x1.conv.weight": (80, 64, 1, 1),
    "Conv2d_4a_3x3.bn.running_var": (192,),
    "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
    "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
    "Mixed_5c.branch1x1.conv.weight": (64, 256, 1, 1),
    "Mixed_5d.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
    "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
    "Mixed_6a.branch3x3dbl_3.bn.bias": (96,),
    "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
    "Mixed_6b.branch7x7dbl_2.conv.weight": (128, 128, 7, 1),
    "Mixed_6c.branch7x7_3.conv.weight": (192, 160, 7, 1),
    "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
    "Mixed_7a.branch3x3_2.conv.weight": (320, 192, 3, 3),
    "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
    "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
    "Mixed_7b.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
    "Mixed_7c.branch3x3dbl_1.conv.weight": (448, 2048, 1, 1),
    "Mixed_7c.branch_pool.bn.weight": (192,),
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = {k: v for k, v in Inception().state_dict().items() if not k.endswith("_tracked")}
    return state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


def test_names_and_sizes_are_the_published_ones() -> None:
    model = without_weights(Inception)
    state = model.state_dict()
    for name, shape in PUBLISHED.items():
        assert tuple(state[name].shape) == shape, name
    assert sum(name.endswith("conv.weight") for name in state) == 94
    # torchvision's InceptionV3 without the auxiliary head has 23,834,568, its classifier 2,049,000.
    assert sum(p.numel() for p in model.parameters()) == 23_834_568 - 2_049_000


def test_a_file_gives_features_of_pictures(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "inception.safetensors"
    save_file(weights | {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(0)}, path)
    model = Inception.load(path)
    images = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    features = model(images)
    assert features.shape == (1, 2048)
    assert features.std() > 0
    assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(images.repeat(2, 1, 1, 1)), features.repeat(2, 1))


@pytest.mark.parametrize("name", ["Mixed_5b", "Mixed_7b", "Mixed_7c"])
def test_averages_leave_the_padding_out(name: str) -> None:
    width = {"Mixed_5b": 192, "Mixed_7b": 1280, "Mixed_7c": 2048}[name]
    block = Mixed(width, inception._BLOCKS[name]).eval()
    x = torch.rand(1, width, 5, 5, generator=torch.Generator().manual_seed(2))
    pooled = functional.max_pool2d(x, 3, 1, 1)
    if name != "Mixed_7c":
        sums = functional.avg_pool2d(x, 3, 1, 1, divisor_override=1)
        counts = functional.avg_pool2d(torch.ones_like(x), 3, 1, 1, divisor_override=1)
        assert counts[0, 0, 0, 0] == 4
        pooled = sums / counts
    channels = block.branch_pool.conv.out_channels
    torch.testing.assert_close(block(x)[:, -channels:], block.branch_pool(pooled))


def test_other_files_are_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="inception_weights: there is no file"):
        Inception.load(tmp_path / "absent.pth")
    path = tmp_path / "other.safetensors"
    changed = weights | {
        "AuxLogits.conv0.conv.weight": torch.zeros(1),
        "fc.bias": torch.zeros(1000),
    }
    del changed["Mixed_6b.branch1x1.bn.bias"]
    save_file(changed, path)
    with pytest.raises(BundleError) as caught:
        Inception.load(path)
    for words in (
        "missing Mixed_6b.branch1x1.bn.bias",
        "unexpected AuxLogits.conv0.conv.weight",
        "fc.bias has shape (1000,), expected (1008,)",
    ):
        assert words in str(caught.value)
