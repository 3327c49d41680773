"""Checkpoints: safetensors for weights and optimizer, JSON for the rest; atomic and resumable.

Every random draw of a run derives from (seed, step), so the step is all the state that data and
noise need: a resumed run goes on exactly as the uninterrupted one.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.weights import load_weights


class CheckpointError(ValueError):
    """A checkpoint is unreadable or belongs to another configuration."""


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value for index, entry in state.items() for key, value in entry.items()
    }


def save_checkpoint(
    directory: Path,
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    config: Any,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write beside the last checkpoint, then replace it: a kill leaves one of the two whole."""
    partial, old = directory / "checkpoint.partial", directory / "checkpoint.old"
    final = directory / "checkpoint"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, module in modules.items():
        save_file(
            {key: value.contiguous() for key, value in module.state_dict().items()},
            partial / f"{name}.safetensors",
        )
    save_file(_optimizer_tensors(optimizer), partial / "optimizer.safetensors")
    state = {"step": step, "config": dataclasses.asdict(config), "extra": dict(extra or {})}
    (partial / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def latest_checkpoint(directory: Path) -> Path | None:
    """The run's whole checkpoint, also after a kill between the two renames of a save."""
    for name in ("checkpoint", "checkpoint.old"):
        if (directory / name / "state.json").exists():
            return directory / name
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
    optimizer: torch.optim.Optimizer,
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
    wanted = json.loads(json.dumps(dataclasses.asdict(config)))
    changed = [key for key, value in wanted.items() if state["config"].get(key) != value]
    if changed:
        raise CheckpointError(
            f"{checkpoint} was made with other values of {', '.join(changed)}; "
            "remove it or choose another name with --set name=..."
        )
    for name, module in modules.items():
        load_weights(module, checkpoint / f"{name}.safetensors")
    _load_optimizer(optimizer, checkpoint / "optimizer.safetensors")
    return state["step"], state["extra"]


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
