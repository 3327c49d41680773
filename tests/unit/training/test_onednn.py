"""oneDNN's linear layers give nn.Linear's outputs and gradients, and only where they apply."""

import copy

import pytest
import torch
from torch import Tensor, nn

from models.text_denoiser import TextDenoiser
from tests.unit.training.conftest import TINY_STAGES
from training.config import ComputeConfig, DiffusionConfig
from training.onednn import OneDnnLinear, has_onednn, use_onednn
from training.processes import ComputeError, Processes

pytestmark = pytest.mark.skipif(not has_onednn(), reason="this build of torch has no oneDNN")


def outcome(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Outputs, and gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    out = layer(x)
    (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 24), (2, 3, 4, 24), (1, 24)])
def test_outputs_and_gradients_are_those_of_nn_linear(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias)
    fast = copy.deepcopy(plain)
    use_onednn(fast)
    assert isinstance(fast, OneDnnLinear)
    x = torch.randn(shape)
    for ours, theirs in zip(outcome(fast, x), outcome(plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_inputs_that_are_not_contiguous_count_as_their_values() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6, 8)
    fast = copy.deepcopy(plain)
    use_onednn(fast)
    x = torch.randn(6, 5, 4).permute(2, 1, 0)
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-6)
    out = fast(x).transpose(0, 1)  # its gradient arrives with other strides
    out.square().sum().backward()
    plain(x).transpose(0, 1).square().sum().backward()
    torch.testing.assert_close(fast.weight.grad, plain.weight.grad, rtol=1e-5, atol=1e-5)


def test_a_frozen_layer_passes_gradients_on_and_keeps_none() -> None:
    layer = nn.Linear(4, 4).requires_grad_(False)
    use_onednn(layer)
    x = torch.randn(2, 4, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(2, 4))
    assert layer.weight.grad is None


def test_autocast_and_other_types_are_left_to_torch() -> None:
    layer = nn.Linear(8, 8)
    use_onednn(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 8)).dtype == torch.bfloat16
    assert layer.double()(torch.randn(2, 8).double()).dtype == torch.float64


def test_the_config_decides_and_the_weights_keep_their_names() -> None:
    config = TINY_STAGES[-1]
    assert isinstance(config, DiffusionConfig)
    torch.manual_seed(0)
    plain = TextDenoiser(config.denoiser)
    fast = copy.deepcopy(plain)
    Processes(ComputeConfig()).place(plain)
    Processes(ComputeConfig(cpu_kernels="onednn")).place(fast)
    assert not any(isinstance(part, OneDnnLinear) for part in plain.modules())
    assert not any(type(part) is nn.Linear for part in fast.modules())
    assert list(fast.state_dict()) == list(plain.state_dict())


def test_a_build_without_the_operator_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.processes.has_onednn", lambda: False)
    with pytest.raises(ComputeError, match="cpu_kernels is onednn"):
        Processes(ComputeConfig(cpu_kernels="onednn"))
