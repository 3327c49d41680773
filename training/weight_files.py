"""Weights of other people's networks, from a path that a setting gives."""

from pathlib import Path

from torch import Tensor

from models import foreign_files
from models.manifest import BundleError
from training.checkpoint import CheckpointError


def read_tensors(path: Path, field: str) -> dict[str, Tensor]:
    """Name -> tensor of a file; see `foreign_files.read_tensors`.

    `field` is the setting that gave the path, for messages.

    Raises:
        CheckpointError: no such file, unreadable, or not tensors by name.
    """
    if not path.is_file():
        raise CheckpointError(f"{field}: there is no file {path}; give its path as {field}=PATH")
    try:
        return foreign_files.read_tensors(path)
    except BundleError as error:
        raise CheckpointError(f"{field}: {error}") from None
