"""Training goes on from a bundle alone, without the runs that it was made of."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.bundle import load_bundle
from models.text_denoiser import TextDenoiser
from tests.unit.training.conftest import TINY_STAGES, StageRunner, tiny_bundle_config
from training.bundling import make_bundle
from training.checkpoint import CheckpointError
from training.config import DiffusionConfig
from training.latents import read_pool
from training.run import Run

DIFFUSION = TINY_STAGES[-1]
assert isinstance(DIFFUSION, DiffusionConfig)


def continuation(bundle: Path) -> DiffusionConfig:
    return replace(DIFFUSION, name="more", after=str(bundle), start_from=str(bundle), steps=2)


def test_the_records_of_the_bundle_come_first(
    tiny_stickers: Path, tmp_path: Path, run_stage: StageRunner
) -> None:
    config = continuation(tiny_stickers)
    config = replace(
        config,
        world="counted",
        timestep_shift=3.0,
        denoiser=replace(config.denoiser, prompt_depth=1),
    )
    run_stage(config, tmp_path / "runs")
    made = replace(tiny_bundle_config(tmp_path / "wider"), diffusion="more", decoder=None)
    manifest = make_bundle(made, tmp_path / "runs")
    before, wider = load_bundle(tiny_stickers), load_bundle(tmp_path / "wider")
    stages = [stage["name"] for stage in manifest.training["stages"]]
    assert stages == [*(s["name"] for s in before.manifest.training["stages"]), "more"]
    assert "tiny-decoder" in stages
    assert manifest.draws["counts"]
    assert manifest.timestep_shift == 3
    assert isinstance(wider.denoiser, TextDenoiser)
    assert wider.denoiser.config.prompt_depth == 1
    assert wider.manifest.latents_std == before.manifest.latents_std
    for name, tensor in before.autoencoder.state_dict().items():
        assert torch.equal(wider.autoencoder.state_dict()[name], tensor)


def test_its_pool_is_encoded_as_from_the_runs(
    tiny_stickers: Path, tmp_path: Path, tiny_runs: Path, run_stage: StageRunner
) -> None:
    run_stage(continuation(tiny_stickers), tmp_path / "runs")
    pools = [
        read_pool(sorted((root / "latents").glob("scenes-*")))
        for root in (tmp_path / "runs" / "more", tiny_runs / "tiny-diffusion")
    ]
    # The bundle's tokenizer is rounded to bfloat16; a second normalization would show.
    torch.testing.assert_close(pools[0].latents, pools[1].latents, rtol=0.05, atol=0.05)


def test_a_new_prompt_encoder_changes_nothing_at_first(
    tiny_stickers: Path, tmp_path: Path, run_stage: StageRunner
) -> None:
    plain = replace(continuation(tiny_stickers), steps=1)
    deep = replace(plain, name="deep", denoiser=replace(plain.denoiser, prompt_depth=2))
    for config in (plain, deep):
        run_stage(config, tmp_path / "runs")
    losses = [
        (tmp_path / "runs" / name / "curves.jsonl").read_text(encoding="utf-8").split('"loss": ')[1]
        for name in ("more", "deep")
    ]
    assert float(losses[0].split(",")[0]) == pytest.approx(float(losses[1].split(",")[0]), rel=1e-5)
    weights = load_file(tmp_path / "runs" / "deep" / "checkpoint" / "denoiser.safetensors")
    assert weights["prompt_encoder.blocks.1.mlp.w3.weight"].any()  # and then it learns


def test_a_folder_that_is_no_bundle_is_named(tiny_stickers: Path, tmp_path: Path) -> None:
    shutil.rmtree(tiny_stickers)
    with pytest.raises(CheckpointError, match=r"starts from .*tiny"):
        Run(tmp_path, continuation(tiny_stickers)).before()


def test_a_shift_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"timestep_shift must be >= 1, got 0\.5"):
        replace(DIFFUSION, timestep_shift=0.5)
