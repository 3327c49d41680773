"""Every stage runs; a run that was stopped goes on to exactly the weights of one that was not."""

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.unit.training.conftest import TINY_STAGES, StageRunner
from training.checkpoint import CheckpointError, latest_checkpoint
from training.config import RunConfig
from training.run import Run


class StoppedError(Exception):
    """Stands for the kill of a run."""


def stop_before_update(number: int, update: Callable[..., float]) -> Callable[..., float]:
    """`update` until its call `number` (from 0), which raises."""
    calls = 0

    def limited(*arguments: object) -> float:
        nonlocal calls
        if calls == number:
            raise StoppedError
        calls += 1
        return update(*arguments)

    return limited


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    return {
        f"{path.stem}/{key}": tensor
        for path in sorted(checkpoint.glob("*.safetensors"))
        for key, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("config", TINY_STAGES, ids=lambda config: config.stage)
def test_two_steps_and_two_more_are_four(
    config: RunConfig,
    tiny_runs: Path,
    run_stage: StageRunner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if config.after is not None:
        shutil.copytree(tiny_runs / config.after, tmp_path / config.after)
    stage = importlib.import_module(f"training.{config.stage}")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "update", stop_before_update(2, stage.update))
        with pytest.raises(StoppedError):
            run_stage(config, tmp_path)
    run = Run(tmp_path, config)
    checkpoint = latest_checkpoint(run.directory)
    assert checkpoint is not None
    assert json.loads((checkpoint / "state.json").read_text())["step"] == 2
    assert not run.finished

    run_stage(config, tmp_path)

    assert run.finished
    resumed = tensors_of(run.directory / "checkpoint")
    whole = tensors_of(tiny_runs / config.name / "checkpoint")
    assert resumed.keys() == whole.keys()
    different = [key for key, tensor in whole.items() if not resumed[key].equal(tensor)]
    assert different == []
    curve = (run.directory / "curves.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in curve] == [config.steps]


@pytest.mark.parametrize("config", TINY_STAGES, ids=lambda config: config.stage)
def test_every_stage_logs_finite_losses(config: RunConfig, tiny_runs: Path) -> None:
    lines = (tiny_runs / config.name / "curves.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["step"] == config.steps
    assert len(last) > 2
    assert all(abs(value) < 1e6 for value in last.values())


@pytest.mark.parametrize("config", TINY_STAGES[1:], ids=lambda config: config.stage)
def test_a_stage_names_the_run_it_needs(
    config: RunConfig, run_stage: StageRunner, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=f"rpiae train {config.after}"):
        run_stage(config, tmp_path)
