"""Checkpoints: safetensors for weights and optimizer, JSON for the rest; atomic and resumable.

Every random draw of a run derives from (seed, step), so the step is all the state that data and
noise need: a resumed run goes on exactly as the uninterrupted one.
"""

import dataclasses
import json
import logging
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.weights import load_weights

_log = logging.getLogger(__name__)

_CHUNK_BYTES = 2**22


Optimizers: TypeAlias = torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer]
"""A stage's only optimizer, or all of them by name; each name is a file of the checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint is unreadable or belongs to another configuration."""


def _by_name(optimizer: Optimizers) -> Mapping[str, torch.optim.Optimizer]:
    return optimizer if isinstance(optimizer, Mapping) else {"optimizer": optimizer}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()
    }


def save_checkpoint(
    directory: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizers,
    config: Any,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write beside the last checkpoint, then put it in its place; that one stays as the spare.

    A kill at any moment leaves a whole checkpoint, and so does a full disk. Room for three is
    needed while writing, for two between.

    Raises:
        CheckpointError: it cannot be written; the checkpoints before it are untouched.
    """
    partial, old = directory / "checkpoint.partial", directory / "checkpoint.old"
    final = directory / "checkpoint"
    state = {"step": step, "config": dataclasses.asdict(config), "extra": dict(extra or {})}
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_files(partial, modules, optimizer, state)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"step {step} cannot be saved in {directory}: {error}; earlier checkpoints are "
            "untouched. Make room, and the same command goes on from the last one"
        ) from None
    if _damage(final) is None:  # a damaged one must not displace a good spare
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    else:
        shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(directory)


def _write_files(
    directory: Path,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizers,
    state: dict[str, Any],
) -> None:
    """All files of a checkpoint, on the disk and not only in its cache; state.json lists them."""
    groups = {name: module.state_dict() for name, module in modules.items()}
    for name, one in _by_name(optimizer).items():
        groups[name] = _optimizer_tensors(one)
    for name, tensors in groups.items():
        path = directory / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path)
        _sync(path)
    paths = sorted(directory.iterdir())
    state["bytes"] = {path.name: path.stat().st_size for path in paths}
    state["crc32"] = {path.name: _checksum(path) for path in paths}
    text = json.dumps(state, indent=1) + "\n"
    (directory / "state.json").write_text(text, encoding="utf-8")
    _sync(directory / "state.json")
    _sync(directory)


def _checksum(path: Path) -> str:
    """CRC-32 of a file, as eight hex digits. Against accidents, not against forgery."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, as far as its list of files tells; None: whole.

    The list has their sizes and checksums; those of older versions lack the checksums, or both.
    """
    try:
        state = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        sizes, checksums = state.get("bytes", {}), state.get("crc32", {})
    except FileNotFoundError:
        return f"{checkpoint}/state.json is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"{checkpoint}/state.json cannot be read: {error}"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.exists():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} of its {size} bytes"
    for name, checksum in checksums.items():
        path = checkpoint / name
        try:
            found = _checksum(path)
        except OSError as error:
            return f"{path} cannot be read: {error}"
        if found != checksum:
            return f"{path} is corrupt: its CRC-32 is {found}, {checksum} when it was written"
    return None


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint of a run, None if it has none yet.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
    """
    problems: list[str] = []
    for name in ("checkpoint", "checkpoint.old"):
        checkpoint = directory / name
        if not checkpoint.exists():
            continue
        problem = _damage(checkpoint)
        if problem is None:
            if problems:
                _log.warning("%s; using %s instead", problems[0], checkpoint)
            return checkpoint
        problems.append(problem)
    if problems:
        raise CheckpointError(f"{'; '.join(problems)}. Remove {directory} to train it anew")
    return None


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The JSON part: step, config, extra.

    Raises:
        CheckpointError: it is not readable.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint}/state.json cannot be read: {error}") from None
    return state


def resume(
    directory: Path,
    modules: Mapping[str, nn.Module],
    optimizer: Optimizers,
    config: Any,
) -> tuple[int, dict[str, Any]]:
    """Load the run's checkpoint, if there is one; the number of steps done, and its extra state.

    Raises:
        CheckpointError: written by another configuration, or unreadable.
    """
    checkpoint = latest_checkpoint(directory)
    if checkpoint is None:
        return 0, {}
    state = read_state(checkpoint)
    changed = _changed(config, state["config"])
    if changed:
        raise CheckpointError(
            f"{checkpoint} was made with other values of {', '.join(changed)}; "
            "remove it or choose another name with --set name=..."
        )
    for name, module in modules.items():
        load_weights(module, checkpoint / f"{name}.safetensors")
    for name, one in _by_name(optimizer).items():
        _load_optimizer(one, checkpoint / f"{name}.safetensors")
    return state["step"], state["extra"]


def _changed(config: Any, stored: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields whose value differs from the stored one.

    A field that a config of an earlier version lacks had its default.
    """
    found: list[str] = []
    wanted = json.loads(json.dumps(dataclasses.asdict(config)))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        if field.name not in stored:
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            found += [] if value == default else [name]
        elif dataclasses.is_dataclass(value) and isinstance(stored[field.name], Mapping):
            found += _changed(value, stored[field.name], f"{name}.")
        elif wanted[field.name] != stored[field.name]:
            found.append(name)
    return found


def _load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)
