"""Packed layers: the same outputs, in any batch, and nothing left of the file they came from."""

import gc
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from models.class_denoiser import ClassDenoiser, ClassDenoiserConfig
from models.packed_linear import PackedLinear, can_pack, pack_linears, packed_bytes
from models.weights import load_weights, save_weights, without_weights

pytestmark = pytest.mark.skipif(not can_pack(), reason="this PyTorch has no packed oneDNN layers")

CONFIG = ClassDenoiserConfig(
    latent_channels=6, latent_side=4, width=64, depth=2, num_heads=4, num_classes=5
)


def make_denoiser() -> ClassDenoiser:
    model = ClassDenoiser(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (7,), (2, 65), (2, 3, 5)])
def test_outputs_are_those_of_the_layer(rows: tuple[int, ...], bias: bool) -> None:
    linear = nn.Linear(48, 20, bias=bias).requires_grad_(False)
    x = torch.randn(*rows, 48)
    assert torch.allclose(PackedLinear(linear)(x), linear(x), atol=1e-5)


def test_inputs_need_not_be_contiguous() -> None:
    linear = nn.Linear(8, 8).requires_grad_(False)
    x = torch.randn(2, 8, 5).transpose(1, 2)
    assert torch.allclose(PackedLinear(linear)(x), linear(x), atol=1e-5)


def test_a_whole_model_computes_the_same() -> None:
    model = make_denoiser()
    rows = torch.randn(3, 6, 4, 4), torch.rand(3), torch.tensor([0, 5, 2])
    expected, num_bytes = model(*rows), sum(p.nbytes for p in model.parameters())
    pack_linears(model)
    assert not any(type(part) is nn.Linear for part in model.modules())
    assert torch.allclose(model(*rows), expected, atol=1e-4)
    alone = torch.cat([model(*(part[i : i + 1] for part in rows)) for i in range(3)])
    assert torch.allclose(alone, expected, atol=1e-4)
    biases = sum(part._bias.nbytes for part in model.modules() if isinstance(part, PackedLinear))
    assert packed_bytes(model) + biases == num_bytes


def test_a_packed_model_lets_go_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(make_denoiser(), path, torch.float32)
    model = without_weights(lambda: ClassDenoiser(CONFIG)).requires_grad_(False)
    load_weights(model, path)

    def is_mapped() -> bool:
        gc.collect()
        return any(region.path == str(path) for region in psutil.Process().memory_maps())

    assert is_mapped()
    pack_linears(model)
    assert not is_mapped()
