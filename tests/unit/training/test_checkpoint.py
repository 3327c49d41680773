"""Checkpoints survive a full disk and damage; a loss that is not finite stops before the update."""

import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.unit.training.conftest import TINY_STAGES
from training.checkpoint import (
    CheckpointError,
    latest_checkpoint,
    read_state,
    resume,
    save_checkpoint,
)
from training.config import OptimConfig
from training.log import RunLog
from training.optim import NotFiniteError, make_optimizer, update

CONFIG = TINY_STAGES[0]
OPTIM = OptimConfig(lr=0.1)


class Training:
    """A linear layer and its optimizer, saved in a directory."""

    def __init__(self, directory: Path) -> None:
        torch.manual_seed(0)
        self.directory = directory
        self.module = nn.Linear(64, 64)
        self.optimizer = make_optimizer(self.module.parameters(), OPTIM)

    def step(self, step: int) -> None:
        self.module(torch.ones(2, 64)).square().mean().backward()
        update(self.optimizer, step, 10, OPTIM)

    def save(self, step: int) -> None:
        save_checkpoint(self.directory, step, {"layer": self.module}, self.optimizer, CONFIG)

    def resume(self) -> int:
        return resume(self.directory, {"layer": self.module}, self.optimizer, CONFIG)[0]


@pytest.fixture
def saved_twice(tmp_path: Path) -> Training:
    """Steps 1 and 2 are saved."""
    training = Training(tmp_path / "run")
    for step in range(2):
        training.step(step)
        training.save(step + 1)
    return training


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Files of this process cannot grow further: what a full disk does to them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# The layer takes 16.8 kB, the optimizer twice that, state.json some hundred bytes.
@pytest.mark.parametrize("room", [0, 10_000, 20_000])
def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(
    saved_twice: Training, room: int
) -> None:
    weights = saved_twice.module.weight.detach().clone()
    saved_twice.step(2)
    with (
        largest_file(room),
        pytest.raises(CheckpointError, match=r"step 3 cannot be saved in .*run"),
    ):
        saved_twice.save(3)
    assert saved_twice.resume() == 2
    assert saved_twice.module.weight.equal(weights)
    assert not (saved_twice.directory / "checkpoint.partial").exists()
    saved_twice.save(3)
    assert saved_twice.resume() == 3


@pytest.mark.parametrize("name", ["layer.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "removed"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    saved_twice: Training, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved_twice.directory / "checkpoint" / name
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    assert saved_twice.resume() == 1
    assert f"checkpoint/{name}" in caplog.text
    assert "checkpoint.old instead" in caplog.text
    saved_twice.save(2)  # the good spare is not displaced by the damaged one
    assert saved_twice.resume() == 2
    old = saved_twice.directory / "checkpoint.old"
    assert read_state(old)["step"] == 1


def flip_one_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["layer.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("place", [0, 12_345, -1])
def test_a_flipped_bit_gives_way_to_the_checkpoint_before(
    saved_twice: Training, name: str, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved_twice.directory / "checkpoint" / name
    flip_one_bit(path, place)
    assert saved_twice.resume() == 1
    assert f"checkpoint/{name} is corrupt: its CRC-32 is " in caplog.text
    assert "checkpoint.old instead" in caplog.text
    saved_twice.save(2)  # the good spare is not displaced by the corrupt one
    assert read_state(saved_twice.directory / "checkpoint.old")["step"] == 1
    flip_one_bit(path, place)
    flip_one_bit(saved_twice.directory / "checkpoint.old" / name, place)
    with pytest.raises(CheckpointError, match=rf"checkpoint.old/{name} is corrupt"):
        saved_twice.resume()


def test_a_checkpoint_without_checksums_is_still_good(saved_twice: Training) -> None:
    path = saved_twice.directory / "checkpoint" / "state.json"
    state = json.loads(path.read_text())
    assert state["crc32"].keys() == state["bytes"].keys()
    del state["crc32"]
    path.write_text(json.dumps(state))
    assert saved_twice.resume() == 2


def test_when_all_are_damaged_the_files_are_named(saved_twice: Training) -> None:
    for folder in ("checkpoint", "checkpoint.old"):
        path = saved_twice.directory / folder / "layer.safetensors"
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"layer.safetensors has 100 of its \d+ bytes"):
        saved_twice.resume()


def test_a_kill_between_the_renames_leaves_the_spare(saved_twice: Training) -> None:
    (saved_twice.directory / "checkpoint").rename(saved_twice.directory / "checkpoint.partial")
    assert latest_checkpoint(saved_twice.directory) == saved_twice.directory / "checkpoint.old"
    assert saved_twice.resume() == 1


def test_a_config_of_another_model_names_its_fields(saved_twice: Training) -> None:
    encoder = replace(CONFIG.model.encoder, depth=2)
    other = replace(CONFIG, model=replace(CONFIG.model, encoder=encoder))
    with pytest.raises(CheckpointError, match=r"other values of model\.encoder\.depth;"):
        resume(saved_twice.directory, {}, saved_twice.optimizer, other)
    assert saved_twice.resume() == 2


def test_a_field_that_an_older_checkpoint_lacks_had_its_default(saved_twice: Training) -> None:
    path = saved_twice.directory / "checkpoint" / "state.json"
    state = json.loads(path.read_text())
    del state["config"]["num_threads"]
    path.write_text(json.dumps(state))
    assert saved_twice.resume() == 2
    modules = {"layer": saved_twice.module}
    with pytest.raises(CheckpointError, match="other values of num_threads"):
        resume(
            saved_twice.directory, modules, saved_twice.optimizer, replace(CONFIG, num_threads=2)
        )


@pytest.mark.parametrize("poison", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stops_before_the_update(
    saved_twice: Training, poison: str, value: float
) -> None:
    before = saved_twice.module.weight.detach().clone()
    terms = {"image": 0.5, "pivot": value if poison == "loss" else 0.25}
    scale = value if poison == "gradient" else 1.0
    (scale * saved_twice.module(torch.ones(2, 64)).mean()).backward()
    with pytest.raises(NotFiniteError, match=r"step 7 \(batch of seed 11\)") as caught:
        update(saved_twice.optimizer, 7, 10, OPTIM, terms, 11)
    for word in ("gradient norm", "image 0.5", "pivot"):
        assert word in str(caught.value)
    assert saved_twice.module.weight.equal(before)
    assert saved_twice.resume() == 2


def test_a_log_goes_on_where_the_checkpoint_ends(tmp_path: Path) -> None:
    with RunLog(tmp_path, "run", 10, every=2) as log:
        for step in range(7):
            log.step(step, 1, loss=float(step))
    path = tmp_path / "curves.jsonl"
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # a kill in the middle of a line
    with RunLog(tmp_path, "run", 10, every=2, first_step=5) as log:
        for step in range(5, 10):
            log.step(step, 1, loss=float(step))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    assert lines[-1]["loss"] == 8.5
