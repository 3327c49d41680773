"""Weights of other people's networks from a local file, without running code that it may hold."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training.checkpoint import CheckpointError


def read_tensors(path: Path, field: str) -> dict[str, Tensor]:
    """Name -> tensor of a safetensors file or of a PyTorch state dict.

    A PyTorch file is a pickle: only tensors and plain containers are read, all else is refused.
    `field` is the setting that gave the path, for messages.

    Raises:
        CheckpointError: no such file, unreadable, or not tensors by name.
    """
    if not path.is_file():
        raise CheckpointError(f"{field}: there is no file {path}; give its path as {field}=PATH")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{field}: {path} is damaged, or holds more than tensors, which could run code and is "
            f"refused ({str(error).splitlines()[0]}). Save its state dict alone"
        ) from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, LookupError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{field}: {path} cannot be read: {reason}") from None
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise CheckpointError(f"{field}: {path} is no state dict: it holds more than tensors")
    return dict(content)
