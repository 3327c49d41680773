"""Linear layers for inference on a CPU: oneDNN with weights in its own order.

PyTorch's float32 `nn.Linear` calls MKL, which on processors of other makers than Intel leaves the
wide vector units idle, and it lays the weights out anew in every call. oneDNN does neither.
"""

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """The outputs of an `nn.Linear` to float32 rounding; no gradients, no state to save."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().contiguous()
        self.num_bytes = weight.nbytes
        # Without a number of rows, oneDNN chooses an order that suits any.
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._bias = None if linear.bias is None else linear.bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._weight, self._bias, "none", [], ""
        )
        return out


def can_pack() -> bool:
    """Whether this build of PyTorch has oneDNN's packed layers."""
    return hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


@torch.no_grad()
def pack_linears(module: nn.Module) -> None:
    """Replace every float32 linear layer inside a module on the CPU; the module only infers then.

    What remains is copied, so that weights which were mapped from a file let go of it.
    """
    if not can_pack():
        return
    _replace(module)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if type(child) is nn.Linear and child.weight.dtype == torch.float32:
            setattr(module, name, PackedLinear(child))
        else:
            _replace(child)


def packed_bytes(module: nn.Module) -> int:
    """Memory of a module's parameters, packed ones included."""
    packed = sum(part.num_bytes for part in module.modules() if isinstance(part, PackedLinear))
    return packed + sum(parameter.nbytes for parameter in module.parameters())
