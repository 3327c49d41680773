"""What a computation costs, counted on the meta device: no weights, no memory, no time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """flops: of products (matrices, convolutions), a multiplication and an addition each.
    activation_bytes: what the forward pass keeps for the backward pass, in float32.
    """

    flops: int
    activation_bytes: int


def measure(work: Callable[[], None], parameters: set[int]) -> Cost:
    """Cost of `work`, a forward and backward pass of modules on the meta device.

    Attention counts as a fused kernel: it keeps queries, keys, values and its output, not the
    square of weights, and computes that square again in the backward pass.

    Args:
        parameters: ids of the storages (`storage_id`) of weights, which are no activations.
    """
    kept: dict[int, tuple[StorageWeakRef, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        key, storage = storage_id(tensor), tensor.untyped_storage()
        if key not in parameters:
            kept[key] = (StorageWeakRef(storage), storage.nbytes())
        return tensor

    counter = FlopCounterMode(display=False)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.device("meta"), _FusedAttention(), counter, hooks:
        work()
    return Cost(counter.get_total_flops(), sum(size for _, size in kept.values()))


def storage_id(tensor: Tensor) -> int:
    """The same for all views of one storage."""
    return int(StorageWeakRef(tensor.untyped_storage()).cdata)


class _Attention(torch.autograd.Function):
    """The products of fused attention; q, k and v (B, H, N, D), or (B, H, M, D) for k and v."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = (q @ k.transpose(-1, -2)) @ v
        ctx.save_for_backward(q, k, v, out, out.new_empty(out.shape[:-1]))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, _, _ = ctx.saved_tensors
        (grad,) = grads
        weights = q @ k.transpose(-1, -2)
        grad_weights = grad @ v.transpose(-1, -2)
        return (
            grad_weights @ k,
            grad_weights.transpose(-1, -2) @ q,
            weights.transpose(-1, -2) @ grad,
        )


class _FusedAttention(TorchFunctionMode):
    """Puts `_Attention` in the place of torch's attention, which on meta is not a fused one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is functional.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))
