"""Files of strangers: read for their tensors, refused for anything else, never run."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.foreign_files import read_tensors
from models.manifest import BundleError

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}
MODEL = {"a.weight": torch.zeros(2, 3), "a.bias": torch.zeros(2)}


class RunsCode:
    """What an attacker pickles: loading it would call a program."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.marker}",))


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in WEIGHTS.items()}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"ema": WEIGHTS, "model": MODEL, "step": 3, "epoch": 1, "optimizer": {"state": {}}},
        {"model": WEIGHTS, "step": 3},
        {"model": WEIGHTS, "ema": None},
        {"ema": prefixed("module.")},
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module."),
    ],
)
def test_what_training_wraps_around_a_model_is_taken_off(
    content: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "file.pt")
    tensors = read_tensors(tmp_path / "file.pt")
    assert tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)


def test_files_before_zip_archives_and_safetensors(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(prefixed("module."), tmp_path / "new.safetensors")
    for name in ("old.pt", "new.safetensors"):
        assert read_tensors(tmp_path / name).keys() == WEIGHTS.keys()


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    content = {**WEIGHTS, "evil": RunsCode(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        BundleError, match=r"evil\.pt holds pickled objects .* nothing was executed"
    ):
        read_tensors(path)
    assert not marker.exists()


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def without_its_end(data: bytes) -> bytes:
    return data[:-30]


def with_a_flipped_bit(data: bytes) -> bytes:
    place = data.index(WEIGHTS["a.weight"].numpy().tobytes()) + 7
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def nothing(data: bytes) -> bytes:
    return data[:0]


def noise(data: bytes) -> bytes:
    return bytes(range(256)) * 4


@pytest.mark.parametrize("damage", [truncated, without_its_end, with_a_flipped_bit, nothing, noise])
def test_damaged_checkpoints_are_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save(WEIGHTS, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError, match=r"file\.pt cannot be read .* Fetch it again"):
        read_tensors(path)


@pytest.mark.parametrize("damage", [truncated, without_its_end, nothing, noise])
def test_damaged_safetensors_are_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    save_file(WEIGHTS, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BundleError, match=r"file\.safetensors cannot be read"):
        read_tensors(path)


def test_an_archive_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(BundleError, match=r"file\.pt cannot be read"):
        read_tensors(tmp_path / "file.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1)], "holds no tensors by name, but a list"),
        (torch.ones(1), "holds no tensors by name, but a Tensor"),
        ({}, "holds no tensors by name"),
        ({"a": torch.ones(1), "note": "hi"}, r"holds more than tensors \(note\)"),
        ({**WEIGHTS, **prefixed("module.")}, "holds a.weight twice"),
    ],
)
def test_other_contents(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(BundleError, match=message):
        read_tensors(tmp_path / "file.pt")


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("none.pt", "none.safetensors"):
        with pytest.raises(BundleError, match="none"):
            read_tensors(tmp_path / name)
