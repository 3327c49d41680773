"""Tensors out of files of others: PyTorch checkpoints and safetensors, without running their code.

A PyTorch checkpoint is a pickle, and unpickling can run any program. Only tensors and plain
containers are read here; everything else is refused. Tensors stay in the file until they are used.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch._weights_only_unpickler import UnpicklingError  # type: ignore[attr-defined]

from models.manifest import BundleError

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SAFETENSORS_SUFFIX = ".safetensors"
SUFFIXES = (*TORCH_SUFFIXES, SAFETENSORS_SUFFIX)

# Where training checkpoints keep their weights, best first: the moving average before the last.
_WEIGHTS = ("ema", "model", "state_dict")
_READ_BYTES = 2**20
# How torch says that a pickle names a function or class that is not a tensor's.
_FOREIGN = re.compile(r"unsupported (global|class)|can only (build|call|create)", re.IGNORECASE)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a checkpoint, whatever wrapped its model in training.

    Takes the `ema` of a training checkpoint, else its `model`; a flat file as it is. The prefixes
    of DistributedDataParallel (`module.`) and torch.compile (`_orig_mod.`) are taken off.

    Raises:
        BundleError: unreadable, damaged, or holding anything but tensors and plain containers.
    """
    if path.suffix != SAFETENSORS_SUFFIX and zipfile.is_zipfile(path):
        _check_sums(path)
    return _unwrap(_load(path), path)


def read_names(path: Path) -> set[str]:
    """Names of the tensors that `read_tensors` gives; their values are not looked at.

    Raises:
        BundleError: as for `read_tensors`, damaged values excepted.
    """
    return set(_unwrap(_load(path), path))


def _load(path: Path) -> object:
    if path.suffix == SAFETENSORS_SUFFIX:
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from None
    # Files older than torch 1.6 are no zip archives and cannot be mapped.
    mapped = zipfile.is_zipfile(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError as error:
        raise _unpicklable(path, error) from None
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError) as error:
        raise _damaged(path, error) from None


def _check_sums(path: Path) -> None:
    """Read a zip archive once against its checksums: torch itself does not look at them."""
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if not record.CRC:  # empty, or torch was told to write none
                    continue
                with archive.open(record) as stream:
                    while stream.read(_READ_BYTES):
                        pass
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise _damaged(path, error) from None


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    weights: object = content
    if isinstance(content, Mapping):
        weights = next(
            (content[name] for name in _WEIGHTS if isinstance(content.get(name), Mapping)), content
        )
    if not isinstance(weights, Mapping) or not weights:
        raise BundleError(f"{path} holds no tensors by name, but a {type(weights).__name__}")
    strangers = [str(name) for name, value in weights.items() if not isinstance(value, Tensor)]
    if strangers:
        raise BundleError(
            f"{path} holds more than tensors ({', '.join(strangers[:5])}) and neither an `ema` nor "
            "a `model` that holds them alone"
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        bare = _bare_name(str(name))
        if bare in tensors:
            raise BundleError(f"{path} holds {bare} twice, with and without a wrapper's prefix")
        tensors[bare] = tensor
    return tensors


def _bare_name(name: str) -> str:
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _unpicklable(path: Path, error: Exception) -> BundleError:
    """The two ways in which a restricted unpickling ends: foreign objects, or no pickle at all."""
    reason = str(error)
    if _FOREIGN.search(reason):
        return BundleError(
            f"{path} holds pickled objects beside its tensors, which can run code when they are "
            f"loaded: refused, nothing was executed ({_brief(reason)}). Save the tensors alone, "
            "best as safetensors"
        )
    return _damaged(path, error)


def _damaged(path: Path, error: Exception) -> BundleError:
    return BundleError(
        f"{path} cannot be read as a checkpoint, it is truncated or damaged: "
        f"{_brief(str(error)) or type(error).__name__}. Fetch it again"
    )


def _brief(text: Any) -> str:
    """The line of torch's explanations that says what was wrong."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith(("WeightsUnpickler error", "Unsupported"))]
    return (telling or lines or [""])[0][:200]
