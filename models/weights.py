"""Weights on disk: safetensors in and out, strictly, and modules that wait for them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.manifest import BundleError

M = TypeVar("M", bound=nn.Module)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file strictly into `module`, as float32.

    Parameters of a module from `without_weights` become the file's own pages: nothing is copied.

    Raises:
        BundleError: unreadable file, or missing, unexpected or misshaped tensors (all are listed).
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} cannot be read as safetensors: {error}") from None
    expected = module.state_dict()
    check_tensors(expected, tensors, str(path))
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.float()
    module.load_state_dict(tensors, assign=any(t.is_meta for t in expected.values()))


def save_weights(module: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Write a module's state as safetensors of one dtype.

    Latent statistics stay float32: a rounded scale would shift every latent.
    """
    tensors = {
        key: tensor.detach().cpu().to(torch.float32 if "latents_" in key else dtype).contiguous()
        for key, tensor in module.state_dict().items()
    }
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors writes for its owner alone


def without_weights(build: Callable[[], M]) -> M:
    """The module that `build` makes, its parameters on the meta device: no memory, no time.

    Buffers are real. Fill it with `load_weights`.
    """
    with init_empty_weights(include_buffers=False):
        return build()


def check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], name: str) -> None:
    """Compare names and shapes in both directions.

    Raises:
        BundleError: lists every missing, unexpected and misshaped tensor.
    """
    problems = [f"missing {key}" for key in expected if key not in found]
    problems += [f"unexpected {key}" for key in found if key not in expected]
    problems += [
        f"{key} has shape {tuple(found[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    if problems:
        raise BundleError(f"{name} does not fit the model: " + "; ".join(problems))
