"""`rpiae train` and `rpiae evaluate`: what they run, and one clear line for each mistake."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from tests.unit.training.conftest import TINY_STAGES, tiny_bundle_config
from training import plans
from training.cli import evaluate_command, train_command
from training.overrides import OverrideError, apply_overrides, flat
from training.plans import PLANS, find_plan
from training.presets import PRESETS
from training.run import Run

BRIDGE = PRESETS["stickers-bridge"]
HOLD_LOCK = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def one_wide_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")


def run(*arguments: str) -> Result:
    app = typer.Typer()
    app.command("train")(train_command)
    app.command("evaluate")(evaluate_command)
    return CliRunner().invoke(app, arguments)


@pytest.fixture
def tiny_presets(monkeypatch: pytest.MonkeyPatch, run_stage: object, tmp_path: Path) -> None:
    """Presets of the tiny stages, so that the real commands train in a moment."""
    bundle = tiny_bundle_config(tmp_path / "made")
    for step in (*TINY_STAGES, bundle):
        monkeypatch.setitem(plans.PLANS, step.name, (step,))
    monkeypatch.setitem(plans.PLANS, "tiny", (*TINY_STAGES, bundle))


@pytest.mark.usefixtures("tiny_presets")
def test_a_chain_runs_every_stage_and_makes_the_bundle(tmp_path: Path) -> None:
    result = run("train", "tiny", "--root", str(tmp_path), "--threads", "1")
    assert result.exit_code == 0, result.output
    for config in TINY_STAGES:
        assert f"{config.name}: 4 steps done" in result.output
    assert (tmp_path / "made" / "manifest.json").exists()
    assert "bundle tiny" in result.output

    again = run("train", "tiny", "--root", str(tmp_path))
    assert again.exit_code == 0
    assert again.output.count("is finished") == len(TINY_STAGES)


@pytest.mark.usefixtures("tiny_presets")
def test_the_effective_config_is_shown(tmp_path: Path) -> None:
    result = run(
        "train", "tiny-pretrain", "--root", str(tmp_path), "--set", "optim.lr=0.002", "--set=seed=7"
    )
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.output.splitlines()]
    assert any("optim.lr" in line and "0.002" in line for line in lines)
    assert any("seed" in line and "7" in line for line in lines)
    assert any("model.encoder.width" in line and "32" in line for line in lines)


@pytest.mark.usefixtures("tiny_presets")
def test_a_run_of_another_config_is_not_continued(tmp_path: Path) -> None:
    assert run("train", "tiny-pretrain", "--root", str(tmp_path)).exit_code == 0
    result = run("train", "tiny-pretrain", "--root", str(tmp_path), "--set", "steps=9")
    assert result.exit_code == 2
    assert "other values of steps" in result.output


@pytest.mark.usefixtures("tiny_presets")
def test_a_run_that_is_being_trained_is_left_alone(tmp_path: Path) -> None:
    """The lock is a process's own, so another process holds it; it ends with that process."""
    arguments = ("train", "tiny-pretrain", "--root", str(tmp_path))
    directory = Run(tmp_path, TINY_STAGES[0]).directory
    directory.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(directory / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        result = run(*arguments)
        other.kill()
    assert result.exit_code == 2
    assert "error: another process is training tiny-pretrain in" in result.output
    assert run(*arguments).exit_code == 0


@pytest.mark.usefixtures("tiny_presets")
def test_a_run_that_diverges_stops_with_its_step_seed_and_terms(tmp_path: Path) -> None:
    arguments = ("train", "tiny-pretrain", "--root", str(tmp_path), "--set", "seed=7")
    result = run(*arguments, "--set", "optim.lr=1e25")
    assert result.exit_code == 2
    assert "error: step 1 (batch of seed 7) is not finite: gradient norm" in result.output
    assert all(f", {term} " in result.output for term in ("kind", "pixels", "caption"))
    assert "Traceback" not in result.output
    run_directory = tmp_path / "tiny-pretrain"
    state = json.loads((run_directory / "checkpoint" / "state.json").read_text())
    assert state["step"] == 1  # the last good step


def test_a_missing_run_before_is_one_clear_line(tmp_path: Path) -> None:
    result = run("train", "stickers-bridge", "--root", str(tmp_path))
    assert result.exit_code == 2
    assert "error: stickers-bridge starts from stickers-pivot" in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "rpiae train --list"),
        (["nothing"], "no preset 'nothing'; there are stickers, "),
        (["stickers", "--set", "seed=1"], "--set changes one step"),
        (["stickers-bridge", "--set", "optim.lr"], "is not field=value"),
        (["stickers-bridge", "--set", "optim.foo=1"], "optim.foo: no field 'foo'; there are lr,"),
        (["stickers-bridge", "--set", "steps=many"], "steps: 'many' is not a whole number"),
        (["stickers-bridge", "--set", "steps=0"], "steps: steps and batch_size must be >= 1"),
        (["stickers-bundle", "--set", "guidance_scale=-1"], "must not be negative"),
    ],
)
def test_mistakes_are_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = run("train", *arguments, "--root", str(tmp_path))
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_presets_are_listed() -> None:
    result = run("train", "--list")
    assert result.exit_code == 0
    assert all(name in result.output for name in PLANS)


def test_each_stage_of_the_chain_comes_after_the_one_it_needs() -> None:
    seen: set[str | None] = {None}
    for step in PLANS["stickers"]:
        if step.name in PRESETS:
            assert PRESETS[step.name].after in seen
        seen.add(step.name)
    assert PLANS["stickers"][-1].name == "stickers-bundle"


def test_evaluating_no_bundle_is_one_clear_line(tmp_path: Path) -> None:
    result = run("evaluate", str(tmp_path))
    assert result.exit_code == 2
    assert "is not a bundle" in result.output
    assert "Traceback" not in result.output


def test_lpips_needs_both_of_its_files(tiny_stickers: Path, tmp_path: Path) -> None:
    result = run("evaluate", str(tiny_stickers), f"--vgg-weights={tmp_path / 'vgg.pth'}")
    assert result.exit_code == 2
    assert "both --vgg-weights and --lpips-weights" in result.output
    missing = (f"--vgg-weights={tmp_path / 'vgg.pth'}", f"--lpips-weights={tmp_path / 'l.pth'}")
    result = run("evaluate", str(tiny_stickers), *missing)
    assert result.exit_code == 2
    assert "there is no file" in result.output


def test_evaluation_prints_its_tables(tiny_stickers: Path) -> None:
    options = ("--prompts=1", "--scenes=1", "--edits=1", "--geneval=1", "--no-write")
    result = run("evaluate", str(tiny_stickers), *options)
    assert result.exit_code == 0, result.output
    for words in ("reconstruction", "one shape", "mean of 5", "recolour", "round trip alone"):
        assert words in result.output
    assert not (tiny_stickers / "report.json").exists()


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("steps=12", "steps", 12),
        ("optim.lr = 3e-4", "optim.lr", 3e-4),
        ("optim.betas=(0.8, 0.9)", "optim.betas", (0.8, 0.9)),
        ("after=none", "after", None),
        ("after=other", "after", "other"),
        ("world=full", "world", "full"),
        ("refit_decoder=yes", "refit_decoder", True),
        ("model.encoder.depth=2", "model.encoder.depth", 2),
        ("kl_weight=1", "kl_weight", 1.0),
    ],
)
def test_fields_are_set_with_their_type(text: str, name: str, value: object) -> None:
    (changed,) = find_plan("stickers-bridge", [text])
    values = flat(changed)
    assert values[name] == value
    assert type(values[name]) is type(value)
    assert {**values, name: None} == {**flat(BRIDGE), name: None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim=1", "optim: set one of optim.lr"),
        ("steps.more=1", "steps has no fields"),
        ("world=moon", "'moon' is none of shapes, counted, full"),
        ("refit_decoder=perhaps", "not true or false"),
        ("optim.betas=0.9", "takes 2 values"),
        ("optim.lr=-1", "lr must be positive"),
        ("model.encoder.width=30", "width 30"),
        ("=1", "is not field=value"),
    ],
)
def test_values_that_do_not_fit_name_the_field(text: str, message: str) -> None:
    with pytest.raises(OverrideError, match=message):
        apply_overrides(BRIDGE, [text])


def test_fields_that_only_fit_together_are_set_in_any_order() -> None:
    pivot = PRESETS["rpiae-pivot"]
    texts = ["encoder_folder=none", "after=stickers-pretrain", "vgg_weights=none"]
    texts.append("lpips_weights=none")
    for order in (texts, texts[::-1]):
        assert flat(apply_overrides(pivot, order))["after"] == "stickers-pretrain"
    with pytest.raises(OverrideError, match="vgg_weights: LPIPS needs both"):
        apply_overrides(pivot, ["vgg_weights=none"])


def test_flat_names_every_leaf() -> None:
    changed = replace(BRIDGE, seed=BRIDGE.seed + 1)
    different = [key for key, value in flat(changed).items() if flat(BRIDGE)[key] != value]
    assert different == ["seed"]
    assert len(flat(BRIDGE)) > len(fields(BRIDGE))
