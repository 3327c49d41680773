"""Linear layers for training on a CPU by oneDNN, forward and backward.

PyTorch's float32 `nn.Linear` calls MKL, which on processors of other makers than Intel leaves the
wide vector units idle; `benchmarks/training.py` measures the difference. Results differ from
`nn.Linear` by float32 rounding alone. Opt-in, by `compute.cpu_kernels=onednn`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times the transpose of weight (out, in), plus bias (out,)."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    """The three products of a linear layer: outputs, and gradients of inputs and weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        grad_x = _product(grad, weight.t().contiguous()) if needs_x else None
        grad_weight = None
        if needs_weight:
            grad_weight = _product(rows.t().contiguous(), x.flatten(0, -2).t().contiguous())
        return grad_x, grad_weight, rows.sum(0) if needs_bias else None


class OneDnnLinear(nn.Linear):
    """`nn.Linear` with oneDNN's products: the same parameters, the same names."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out). Under autocast, or off the CPU, it is `nn.Linear`."""
        if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        out: Tensor = _Linear.apply(x, self.weight, self.bias)
        return out


def has_onednn() -> bool:
    """Whether this build of PyTorch has the operator."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def use_onednn(module: nn.Module) -> None:
    """Let every linear layer inside a module compute by oneDNN from now on."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = OneDnnLinear
