"""Fine-tuning: a denoiser starts from another one's averaged weights, or says why it cannot."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.autoencoder import RPiAE
from models.manifest import BundleError
from models.text_denoiser import TextDenoiser
from models.weights import load_weights
from tests.unit.training.conftest import TINY_STAGES, StageRunner, tiny_bundle_config
from tests.unit.training.sample_files import captioned_files, write_shard, write_table
from training.bundling import make_bundle
from training.checkpoint import CheckpointError, read_state
from training.config import DiffusionConfig
from training.data_config import DataConfig
from training.denoiser_presets import DENOISERS
from training.diffusion import make_denoiser
from training.dry_run import estimate
from training.latent_facts import latent_statistics
from training.latents import read_pool
from training.plans import PLANS
from training.run import Run
from training.start import find_start

DIFFUSION = TINY_STAGES[-1]
assert isinstance(DIFFUSION, DiffusionConfig)
FINE = replace(DIFFUSION, name="fine", start_from="tiny-diffusion", edit_share=1.0, steps=2)


@pytest.fixture
def root(tmp_path: Path, tiny_runs: Path) -> Path:
    """All tiny runs, of which a test may add and change some."""
    shutil.copytree(tiny_runs, tmp_path / "runs")
    return tmp_path / "runs"


def start_denoiser(config: DiffusionConfig, root: Path) -> TextDenoiser:
    start = find_start(config, Run(root, config))
    assert start is not None
    return make_denoiser(config, start, is_new=True)


def test_it_starts_from_the_averaged_weights_of_a_run(root: Path) -> None:
    denoiser = start_denoiser(FINE, root)
    averaged = load_file(root / "tiny-diffusion" / "checkpoint" / "ema.safetensors")
    latest = load_file(root / "tiny-diffusion" / "checkpoint" / "denoiser.safetensors")
    assert any(not torch.equal(averaged[name], latest[name]) for name in averaged)
    for name, tensor in denoiser.state_dict().items():
        assert torch.equal(tensor, averaged[name])


def test_a_fine_tuned_run_keeps_the_statistics_and_begins_its_optimizer_anew(
    root: Path, run_stage: StageRunner
) -> None:
    run_stage(FINE, root)
    checkpoint = root / "fine" / "checkpoint"
    found, started = (
        load_file(root / run / "checkpoint" / "autoencoder.safetensors")
        for run in ("fine", "tiny-diffusion")
    )
    pool = read_pool(sorted((root / "fine" / "latents").glob("edits-*")))
    own = latent_statistics(pool.latents, per_channel=False)
    for name, value in zip(("latents_mean", "latents_std"), own, strict=True):
        assert torch.equal(found[name], started[name])
        assert not torch.allclose(found[name], value, rtol=1e-3)
    steps = {
        float(value)
        for name, value in load_file(checkpoint / "optimizer.safetensors").items()
        if name.endswith(".step")
    }
    assert steps == {2.0}


def test_a_begun_run_does_not_need_what_it_started_from(root: Path, run_stage: StageRunner) -> None:
    run_stage(FINE, root)
    whole = load_file(root / "fine" / "checkpoint" / "denoiser.safetensors")
    shutil.rmtree(root / "fine" / "checkpoint")
    (root / "fine" / "checkpoint.old").rename(root / "fine" / "checkpoint")
    assert read_state(root / "fine" / "checkpoint")["step"] == 1
    shutil.rmtree(root / "tiny-diffusion")
    run_stage(FINE, root)
    resumed = load_file(root / "fine" / "checkpoint" / "denoiser.safetensors")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_it_starts_from_a_bundle_or_a_file(root: Path, tmp_path: Path) -> None:
    make_bundle(tiny_bundle_config(tmp_path / "bundle"), root)
    weights = root / "tiny-diffusion" / "checkpoint" / "ema.safetensors"
    averaged = load_file(weights)
    for place, dtype in ((tmp_path / "bundle", torch.bfloat16), (weights, torch.float32)):
        denoiser = start_denoiser(replace(FINE, start_from=str(place)), root)
        for name, tensor in denoiser.state_dict().items():
            assert torch.equal(tensor, averaged[name].to(dtype).float())
    start = find_start(replace(FINE, start_from=str(tmp_path / "bundle")), Run(root, FINE))
    model = RPiAE(FINE.model)
    load_weights(model, root / "tiny-bridge" / "checkpoint" / "autoencoder.safetensors")
    assert start is not None
    assert start.facts is not None
    start.check_latents(model)
    trained = load_file(root / "tiny-diffusion" / "checkpoint" / "autoencoder.safetensors")
    torch.testing.assert_close(torch.tensor(start.facts.std), trained["latents_std"])


def test_a_vocabulary_comes_along(root: Path, tmp_path: Path, run_stage: StageRunner) -> None:
    write_shard(tmp_path / "a" / "0.tar", captioned_files(range(6)))
    write_table(tmp_path / "b" / "0.parquet", range(5))
    shards = DataConfig(kind="shards", path=str(tmp_path / "a"), crop="center", num_workers=0)
    t2i = replace(DIFFUSION, name="t2i", data=shards, edit_share=0.0, steps=2, statistics_images=8)
    table = replace(shards, kind="parquet", path=str(tmp_path / "b"))
    edit = replace(t2i, name="edit", data=table, edit_share=1.0, start_from="t2i")
    for config in (t2i, edit):
        run_stage(config, root)
    first, second = (read_state(root / name / "checkpoint") for name in ("t2i", "edit"))
    assert "long" in first["extra"]["words"]
    assert second["extra"] == first["extra"]
    weights = root / "t2i" / "checkpoint" / "ema.safetensors"
    with pytest.raises(CheckpointError, match="is a file of weights, without the vocabulary"):
        run_stage(replace(edit, name="bare", start_from=str(weights)), root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start_from": "nowhere"}, "start_from nowhere: .* no run of that name with a checkpoint"),
        ({"start_from": "tiny-decoder"}, "tiny-decoder: that run trained no denoiser"),
        (
            {"denoiser": replace(FINE.denoiser, width=64, depth=2)},
            "its denoiser has width 32 there and 64 here, depth 1 there and 2 here",
        ),
        ({"after": "other-bridge"}, r"trained on other latents, bridge_encoder\.\S+ differs"),
    ],
)
def test_what_does_not_fit_is_named(
    root: Path, run_stage: StageRunner, changes: dict[str, object], message: str
) -> None:
    bridge = next(config for config in TINY_STAGES if config.name == "tiny-bridge")
    run_stage(replace(bridge, name="other-bridge", steps=1), root)
    with pytest.raises(CheckpointError, match=message):
        run_stage(replace(FINE, **changes), root)
    assert not (root / "fine" / "checkpoint").exists()


def test_a_file_of_another_model_is_refused_with_its_tensors(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"embed.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(BundleError, match=r"missing position; .*embed\.weight has shape \(2, 2\)"):
        start_denoiser(replace(FINE, start_from=str(path)), root)


def test_without_edits_none_are_drawn(root: Path, run_stage: StageRunner) -> None:
    run_stage(replace(DIFFUSION, name="t2i", edit_share=0.0, steps=1), root)
    latents = {path.name.split("-")[0] for path in (root / "t2i" / "latents").iterdir()}
    assert latents == {"scenes"}
    (line,) = (root / "t2i" / "curves.jsonl").read_text().splitlines()
    assert "edits" not in json.loads(line)


def test_presets_name_runs_that_there_are() -> None:
    for config in DENOISERS.values():
        assert PLANS[config.name] == (config,)
        for before in (config.after, config.start_from):
            assert before is None or before in PLANS
    assert DENOISERS["rpiae-edit"].start_from == "rpiae-t2i"
    assert DENOISERS["stickers-edit"].start_from == "stickers-t2i"


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", ["rpiae-class", "rpiae-t2i", "rpiae-edit", "rpiae-joint"])
def test_presets_of_the_paper_fit_on_the_gpus_that_they_state(name: str) -> None:
    config = DENOISERS[name]
    assert config.compute.num_gpus * config.compute.gpu_tflops > 0
    found = estimate(config, config.compute.num_gpus)
    assert found.memory_bytes < 0.7 * 80e9  # temporary buffers come on top
    assert found.parameters["autoencoder"] == (549_338_112, False)


def test_pictures_of_files_are_encoded_in_every_step() -> None:
    """Each target, and the sources that are kept; stickers are encoded before the first step."""
    pool = replace(DIFFUSION, edit_share=0.0, pool_scenes=1000)
    shards = replace(pool, data=DataConfig(kind="shards"), statistics_images=1000)
    edits = replace(shards, data=DataConfig(kind="jsonl"), edit_share=1.0, source_dropout=0.25)
    once = estimate(pool, 1).flops_once
    assert estimate(shards, 1).flops_once == once
    of_files, of_pool = (estimate(config, 1).flops_per_step for config in (shards, pool))
    assert of_files - of_pool == pytest.approx(DIFFUSION.batch_size * once / 1000, rel=1e-6)
    pool_edits = replace(pool, edit_share=1.0, source_dropout=0.25)
    difference = estimate(edits, 1).flops_per_step - estimate(pool_edits, 1).flops_per_step
    assert difference == pytest.approx(1.75 * DIFFUSION.batch_size * once / 1000, rel=1e-6)
