"""`rpiae train` on pictures from disk: it trains, resumes exactly, and says what is wrong."""

import importlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from tests.unit.training.conftest import TINY_STAGES
from tests.unit.training.sample_files import (
    captioned_files,
    damaged,
    write_folder,
    write_lines,
    write_shard,
    write_table,
)
from training import plans
from training.batches import SHAPES_WORLD, image_batch, random_generator, tokenizer_world
from training.checkpoint import latest_checkpoint
from training.cli import train_command
from training.config import AutoencoderConfig, DataConfig
from training.image_source import StickerImages, image_source
from training.transforms import CropRule

STAGES = [config for config in TINY_STAGES if isinstance(config, AutoencoderConfig)]
# Two workers are right for these tests also where there is one core.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(autouse=True)
def tiny_presets(monkeypatch: pytest.MonkeyPatch, run_stage: object) -> None:
    """The tiny stages under their names, so that the real command finds them."""
    monkeypatch.setenv("COLUMNS", "400")
    for config in STAGES:
        monkeypatch.setitem(plans.PLANS, config.name, (config,))


@pytest.fixture
def root(tmp_path: Path, tiny_runs: Path) -> Path:
    """Runs in which the pretrained encoder is all there is."""
    shutil.copytree(tiny_runs / "tiny-pretrain", tmp_path / "runs" / "tiny-pretrain")
    return tmp_path / "runs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "images", 6, with_damage=True)
    return tmp_path / "images"


def train(root: Path, preset: str, **fields: object) -> Result:
    """Run the command; `data_path` sets data.path."""
    app = typer.Typer()
    app.command("train")(train_command)
    app.command("other")(lambda: None)
    changes = [f"--set={key.replace('data_', 'data.')}={value}" for key, value in fields.items()]
    return CliRunner().invoke(app, ["train", preset, "--root", str(root), *changes])


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    return {
        f"{path.stem}/{key}": tensor
        for path in sorted(checkpoint.glob("*.safetensors"))
        for key, tensor in load_file(path).items()
    }


def write_data(folder: Path, kind: str) -> None:
    """Some good samples of a layout and five damaged ones."""
    if kind == "folder":
        write_folder(folder, 6, with_damage=True)
    elif kind == "shards":
        files = captioned_files(range(6))
        files |= {f"{name}.jpg": data for name, data in damaged().items()}
        write_shard(folder / "0.tar", files)
    elif kind == "jsonl":
        write_lines(folder / "0.jsonl", range(3))
        for name, data in damaged().items():
            (folder / name).write_bytes(data)
            line = json.dumps({"source": "0-before.png", "instruction": "x", "target": name})
            with (folder / "0.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
    else:
        write_table(folder / "0.parquet", range(3), targets=damaged().values())


@pytest.mark.parametrize("kind", ["folder", "shards", "jsonl", "parquet"])
def test_the_tokenizer_stages_train_on_files(root: Path, tmp_path: Path, kind: str) -> None:
    write_data(tmp_path / "data", kind)
    for config in STAGES:
        result = train(root, config.name, data_kind=kind, data_path=tmp_path / "data", steps=11)
        assert result.exit_code == 0, result.output
        assert f"{config.name}: 11 steps done" in result.output
        assert "skipped 5 samples: 2 broken, 1 " in result.output
        last = (root / config.name / "curves.jsonl").read_text().splitlines()[-1]
        assert json.loads(last)["step"] == 11


def test_a_stage_learns_what_the_folder_shows(root: Path, tmp_path: Path) -> None:
    """A decoder that starts at random cannot paint one flat grey; after some steps it can."""

    (tmp_path / "grey").mkdir()
    Image.new("RGB", (50, 40), (60, 60, 60)).save(tmp_path / "grey" / "0.png")
    data = {"data_kind": "folder", "data_path": tmp_path / "grey"}
    result = train(root, "tiny-pivot", **data, steps=60, linear_start="no")
    assert result.exit_code == 0, result.output
    lines = (root / "tiny-pivot" / "curves.jsonl").read_text().splitlines()
    first, *_, last = [json.loads(line)["image"] for line in lines]
    assert last < 0.6 * first


@pytest.mark.parametrize("config", STAGES, ids=lambda config: config.stage)
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    root: Path,
    folder: Path,
    tiny_runs: Path,
    config: AutoencoderConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert config.after is not None
    shutil.copytree(tiny_runs / config.after, root / config.after, dirs_exist_ok=True)
    data = {"data_kind": "folder", "data_path": folder}
    whole = train(root, config.name, name="whole", **data, data_num_workers=0)
    assert whole.exit_code == 0, whole.output

    stage = importlib.import_module(f"training.{config.stage}")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "update", _limited(stage.update, 2))
        killed = train(root, config.name, name="killed", **data)
        assert isinstance(killed.exception, KeyboardInterrupt | SystemExit), killed.output
    again = train(root, config.name, name="killed", **data)
    assert again.exit_code == 0, again.output

    wanted, found = weights(root / "whole"), weights(root / "killed")
    assert wanted.keys() == found.keys()
    assert [key for key, tensor in wanted.items() if not found[key].equal(tensor)] == []


def _limited(update: Callable[..., float], num_calls: int) -> Callable[..., float]:
    left = num_calls

    def limited(*arguments: object, **options: object) -> float:
        nonlocal left
        if not left:
            raise KeyboardInterrupt
        left -= 1
        return update(*arguments, **options)

    return limited


def test_a_deleted_shard_is_named_before_anything_is_trained(root: Path, tmp_path: Path) -> None:
    for shard in range(3):
        write_shard(tmp_path / f"{shard}.tar", captioned_files(range(4)))
    data = {"data_kind": "shards", "data_path": tmp_path}
    assert train(root, "tiny-pivot", **data).exit_code == 0
    before = weights(root / "tiny-pivot")
    (tmp_path / "1.tar").unlink()
    for checkpoint in (root / "tiny-pivot").glob("checkpoint*"):
        state = json.loads((checkpoint / "state.json").read_text())
        state["step"] = 2  # as if it had been killed there
        (checkpoint / "state.json").write_text(json.dumps(state))
    result = train(root, "tiny-pivot", **data)
    assert result.exit_code == 2
    assert f"{tmp_path}/1.tar holds no samples now, 4 when the run began" in result.output
    assert "Traceback" not in result.output
    after = weights(root / "tiny-pivot")
    assert all(after[key].equal(tensor) for key, tensor in before.items())


def test_an_attempt_that_failed_does_not_bind_the_next(root: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "bad", 0, with_damage=True)
    write_folder(tmp_path / "good", 2)
    data = {"data_kind": "folder"}
    assert train(root, "tiny-pivot", **data, data_path=tmp_path / "bad").exit_code == 2
    result = train(root, "tiny-pivot", **data, data_path=tmp_path / "good")
    assert result.exit_code == 0, result.output
    assert "skipped" not in result.output


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"data_kind": "folder"}, "data.path is empty"),
        ({"data_kind": "folder", "data_path": "/nowhere"}, "/nowhere is not a folder"),
        ({"data_kind": "shards", "data_path": "/nowhere/*.tar"}, "names no .tar file"),
        ({"data_kind": "jsonl", "data_path": "/nowhere"}, "names no .jsonl file"),
        ({"data_kind": "video"}, "'video' is none of stickers, folder, shards"),
        ({"data_num_workers": -1}, "num_workers must not be negative"),
    ],
)
def test_mistakes_are_one_clear_line(root: Path, data: dict[str, object], message: str) -> None:
    result = train(root, "tiny-pivot", **data)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_folder_of_damage_alone_is_named(root: Path, tmp_path: Path, num_workers: int) -> None:
    write_folder(tmp_path / "images", 0, with_damage=True)
    data = {"data_path": tmp_path / "images", "data_num_workers": num_workers}
    result = train(root, "tiny-pivot", data_kind="folder", **data)
    assert result.exit_code == 2
    assert "images: none of 5 samples in a row can be used (2 broken, " in result.output
    assert "Traceback" not in result.output


def test_first_images_are_not_those_of_the_steps(tmp_path: Path, folder: Path) -> None:
    (config,) = [config for config in STAGES if config.stage == "pivot"]
    source = image_source(_on_folder(config, folder), tmp_path)
    first = source.initial(40, 1)
    assert first.shape == (40, 3, 128, 128)
    assert not first[:2].equal(source.batch(0))
    assert not first.equal(source.initial(40, 2))
    assert first.equal(source.initial(40, 1))


def _on_folder(config: AutoencoderConfig, folder: Path) -> AutoencoderConfig:

    return replace(config, data=DataConfig(kind="folder", path=str(folder), num_workers=0))


@pytest.mark.parametrize("config", STAGES, ids=lambda config: config.stage)
def test_stickers_are_drawn_as_ever(config: AutoencoderConfig, tmp_path: Path) -> None:
    source = image_source(config, tmp_path)
    assert isinstance(source, StickerImages)
    world = tokenizer_world(SHAPES_WORLD)
    drawn = image_batch(world, config.batch_size, random_generator(config.seed, config.stage, 7))
    assert source.batch(7).equal(drawn)
    assert source.initial(3, 1).equal(
        image_batch(world, 3, random_generator(config.seed, "init", 1))
    )
    assert image_source(config, tmp_path, rows=[1]).batch(7).equal(drawn[1:])


def test_crop_rules_are_the_configs() -> None:
    assert get_args(DataConfig.__annotations__["crop"]) == get_args(CropRule)
