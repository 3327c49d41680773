"""A run with sample grids paints them, and learns exactly what it learns without."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.unit.training.conftest import TINY_STAGES, StageRunner
from training.config import DataConfig, DiffusionConfig, RunConfig
from training.log import RunLog
from training.sample_grids import SampleGrids


def run_with_grids(config: RunConfig, runs: Path, root: Path, run_stage: StageRunner) -> Path:
    """The run's folder; the tiny runs, and what they encoded, are there already."""
    assert config.after is not None
    shutil.copytree(runs / config.after, root / config.after)
    if config.stage == "diffusion":
        shutil.copytree(runs / config.name / "latents", root / config.name / "latents")
    run_stage(replace(config, samples_every=3), root)
    return root / config.name


@pytest.mark.parametrize("config", TINY_STAGES[1:], ids=lambda config: config.stage)
def test_grids_change_no_weight(
    config: RunConfig, tiny_runs: Path, run_stage: StageRunner, tmp_path: Path
) -> None:
    run = run_with_grids(config, tiny_runs, tmp_path, run_stage)
    names = sorted(path.name for path in (run / "samples").iterdir())
    assert names == ["step-0000003.png", "step-0000004.png"]  # every third step, and the last one
    plain = tiny_runs / config.name / "checkpoint"
    for path in sorted(plain.glob("*.safetensors")):
        ours, theirs = load_file(run / "checkpoint" / path.name), load_file(path)
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not ours[key].equal(theirs[key])] == []
    assert not (tiny_runs / config.name / "samples").exists()
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Images("samples")] == [3, 4]
    size = 128 * (4 * (1 if config.stage == "diffusion" else 2))
    with Image.open(run / "samples" / names[0]) as sheet:
        assert sheet.width >= size
        assert np.asarray(sheet).std() > 1


def test_the_grid_shows_the_inputs_beside_what_is_painted(
    tiny_runs: Path, run_stage: StageRunner, tmp_path: Path
) -> None:
    run = run_with_grids(TINY_STAGES[1], tiny_runs, tmp_path, run_stage)
    grids = [np.asarray(Image.open(path)) for path in sorted((run / "samples").iterdir())]
    margin = 8
    sources, painted = (
        [grid[margin:136, left : left + 128] for grid in grids] for left in (8, 140)
    )
    np.testing.assert_array_equal(*sources)
    assert (painted[0] != painted[1]).any()
    assert np.abs(sources[1].astype(int) - painted[1]).mean() < 40


def test_drawing_leaves_the_random_state_of_training_alone(tmp_path: Path) -> None:
    def draw() -> list:
        torch.rand(3)
        raise StopIteration

    config = replace(TINY_STAGES[1], samples_every=2)
    before = torch.get_rng_state()
    with RunLog(tmp_path, "run", 4) as log, pytest.raises(StopIteration):
        SampleGrids(config, draw).after(1, log)
    assert torch.equal(torch.get_rng_state(), before)
    SampleGrids(replace(config, samples_every=0), draw).after(1, log)  # nothing is due
    SampleGrids(config, draw).after(0, log)


def test_what_cannot_be_painted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"samples_every 5: .* pretrain paints nothing"):
        replace(TINY_STAGES[0], samples_every=5)
    with pytest.raises(ValueError, match="samples_every -1"):
        replace(TINY_STAGES[1], samples_every=-1)
    diffusion = TINY_STAGES[4]
    assert isinstance(diffusion, DiffusionConfig)
    files = DataConfig(kind="shards", path="x-{00..01}.tar", crop="center")
    with pytest.raises(ValueError, match="samples_every needs sample_prompts"):
        replace(diffusion, samples_every=5, data=files, edit_share=0.0)
