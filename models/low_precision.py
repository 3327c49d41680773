"""Linear layers with weights in fewer bits: bf16, or int8 and fp8 with a scale for each output.

Only the layers inside stacks of blocks, which hold nearly all weights. What reads the input and
what makes the output, embeddings, positions, norms and the residual stream stay float32, as they do
under autocast. Weight-only: the multiplication itself is in bf16, or in float32.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

LowPrecision: TypeAlias = Literal["bf16", "int8", "fp8"]
"""fp8 is e4m3: four bits of exponent, three of mantissa, and no infinity."""

_INT8_MOST = 127.0
_FP8_MOST = torch.finfo(torch.float8_e4m3fn).max
_TINY = torch.finfo(torch.float32).tiny
_RESIDUAL = "skip"  # a layer of this name is in the residual stream itself, not beside it


class LowPrecisionLinear(nn.Module):
    """An `nn.Linear` with its weight in fewer bits; it only infers.

    Outputs have the type that it multiplies in. int8 rounds a weight by at most half of its
    output's largest one / 127; fp8 by at most 1/16 of itself, or by 2**-10 of that output's
    largest / 448 where that is more.
    """

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, precision: LowPrecision, compute: torch.dtype) -> None:
        """`compute`: the type that inputs and weights are multiplied in."""
        super().__init__()
        self.compute = compute
        weight, scale = linear.weight.detach().float(), None
        if precision == "bf16":
            held = weight.to(torch.bfloat16)
        else:
            most = _INT8_MOST if precision == "int8" else _FP8_MOST
            scale = (weight.abs().amax(dim=1) / most).clamp(min=_TINY)  # (out,)
            held = (weight / scale[:, None]).clamp(-most, most)
            held = (
                held.round().to(torch.int8) if precision == "int8" else held.to(torch.float8_e4m3fn)
            )
        bias = None if linear.bias is None else linear.bias.detach().clone()
        if scale is None and bias is not None:
            bias = bias.to(compute)
        # Parameters, so that they move with the module and count as its memory.
        for name, tensor in (("weight", held), ("scale", scale), ("bias", bias)):
            parameter = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) of any type -> (..., out) of `compute`."""
        x, weight = x.to(self.compute), self.weight.to(self.compute)
        if self.scale is None:
            return functional.linear(x, weight, self.bias)
        # One scale for each output, so it can follow the sum; that is a smaller tensor to scale.
        out = functional.linear(x, weight) * self.scale
        return (out if self.bias is None else out + self.bias).to(self.compute)


def lower_precision(module: nn.Module, precision: LowPrecision, compute: torch.dtype) -> None:
    """Replace the linear layers of every stack (`nn.ModuleList`) inside a module."""
    for part in module.modules():
        if isinstance(part, nn.ModuleList):
            _replace(part, precision, compute)


def _replace(module: nn.Module, precision: LowPrecision, compute: torch.dtype) -> None:
    for name, child in module.named_children():
        if type(child) is not nn.Linear:
            _replace(child, precision, compute)
        elif name != _RESIDUAL:
            setattr(module, name, LowPrecisionLinear(child, precision, compute))
