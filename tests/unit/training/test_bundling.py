"""A bundle of finished runs holds the averaged denoiser and the decoder run's pixel decoder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.bundle import load_bundle
from models.manifest import BundleError, read_manifest
from tests.unit.training.conftest import tiny_bundle_config
from training.bundling import make_bundle, training_seconds
from training.checkpoint import CheckpointError
from training.stickers import SHAPES_WORLD, drawable
from training.worlds import world_of


def assert_saved(saved: torch.Tensor, trained: torch.Tensor) -> None:
    """A bundle's weights are the trained ones, rounded to bfloat16."""
    torch.testing.assert_close(saved, trained.to(torch.bfloat16).float(), rtol=0, atol=0)


def test_parts_come_from_their_runs(tiny_stickers: Path, tiny_runs: Path) -> None:
    bundle = load_bundle(tiny_stickers)
    ema = load_file(tiny_runs / "tiny-diffusion" / "checkpoint" / "ema.safetensors")
    for key, tensor in bundle.denoiser.state_dict().items():
        assert_saved(tensor, ema[key])
    trained = load_file(tiny_runs / "tiny-decoder" / "checkpoint" / "autoencoder.safetensors")
    for key, tensor in bundle.autoencoder.state_dict().items():
        if not key.startswith("latents_"):
            assert_saved(tensor, trained[key])
    statistics = load_file(tiny_runs / "tiny-diffusion" / "checkpoint" / "autoencoder.safetensors")
    torch.testing.assert_close(bundle.autoencoder.latents_std, statistics["latents_std"])
    torch.testing.assert_close(bundle.autoencoder.latents_mean, statistics["latents_mean"])


def test_manifest_says_what_and_how(tiny_stickers: Path) -> None:
    manifest = read_manifest(tiny_stickers)
    assert manifest.tasks == ["generate", "edit", "variation", "encode", "decode"]
    assert manifest.draws == drawable(SHAPES_WORLD)
    assert (manifest.default_steps, manifest.default_guidance_scale) == (2, 2.0)
    names = [stage["name"] for stage in manifest.training["stages"]]
    assert names == ["tiny-pretrain", "tiny-pivot", "tiny-bridge", "tiny-diffusion", "tiny-decoder"]
    diffusion = manifest.training["stages"][3]
    assert (diffusion["steps"], diffusion["samples"]) == (4, 32)
    assert diffusion["config"]["optim"]["lr"] == 1e-3
    assert diffusion["last"]["loss"] > 0
    assert manifest.training["hardware"]["cores"] >= 1


def test_without_a_decoder_run_the_older_decoder_stays(tiny_runs: Path, tmp_path: Path) -> None:
    make_bundle(replace(tiny_bundle_config(tmp_path / "b"), decoder=None), tiny_runs)
    trained = load_file(tiny_runs / "tiny-pivot" / "checkpoint" / "decoder.safetensors")
    bundle = load_bundle(tmp_path / "b")
    for key, tensor in bundle.autoencoder.decoder.state_dict().items():
        assert_saved(tensor, trained[key])


def test_a_decoder_of_other_latents_is_refused(tiny_runs: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    shutil.copytree(tiny_runs, root)
    path = root / "tiny-decoder" / "checkpoint" / "autoencoder.safetensors"
    tensors = load_file(path)
    tensors["encoder.position"] += 1
    save_file(tensors, path)
    state = json.loads((path.parent / "state.json").read_text())
    del state["crc32"]  # another run's weights, not a corrupt file
    (path.parent / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"1 tensors .* encoder\.position"):
        make_bundle(tiny_bundle_config(tmp_path / "b"), root)
    assert not (tmp_path / "b").exists()


def test_a_missing_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rpiae train tiny-diffusion"):
        make_bundle(tiny_bundle_config(tmp_path / "b"), tmp_path)


def test_time_of_repeated_steps_counts_once(tmp_path: Path) -> None:
    lines = [
        {"step": 10, "samples_per_s": 5.0},
        {"step": 20, "samples_per_s": 1.0},
        {"step": 20, "samples_per_s": 10.0},
        {"step": 30, "samples_per_s": 20.0},
    ]
    (tmp_path / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # 10 steps of 4 samples each: 40 / 5 + 40 / 10 + 40 / 20
    assert training_seconds(tmp_path, batch_size=4) == pytest.approx(14)


def test_a_manifest_gives_its_world_back() -> None:
    draws = json.loads(json.dumps(drawable(SHAPES_WORLD)))
    assert world_of(draws) == SHAPES_WORLD


@pytest.mark.parametrize(
    ("change", "message"),
    [({"shapes": ["blob"]}, "shapes.*blob"), ({"size": 3}, "size"), ({"max_items": 9}, "9")],
)
def test_a_world_that_cannot_be_drawn_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        world_of(drawable(SHAPES_WORLD) | change)


def test_a_manifest_without_a_world_is_refused() -> None:
    with pytest.raises(BundleError, match="draws lacks shapes"):
        world_of({})
