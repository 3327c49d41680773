"""The tokenizer stages with everything on: exact resume, what is recorded, the paper's presets."""

import importlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.autoencoder import RPiAE
from models.bridge import Posterior
from models.discriminator import Discriminator
from models.encoder import PretrainedEncoderConfig, build_encoder
from models.manifest import BundleError
from models.weights import without_weights
from tests.unit.training.conftest import MODEL, TINY_STAGES, StageRunner
from tests.unit.training.test_stages import StoppedError, stop_before_update, tensors_of
from training.bridge import bridge_loss
from training.checkpoint import CheckpointError, read_state
from training.config import AutoencoderConfig, OptimConfig, RunConfig
from training.plans import PLANS
from training.presets import PAPER
from training.pretrained import load_pretrained_encoder
from training.processes import Processes

PIVOT = replace(
    next(config for config in TINY_STAGES if config.stage == "pivot"),
    name="full-pivot",
    pivot_norms_at="fc2",
    pivot_warmup_steps=1,
    pivot_weight_cap=1e5,
    gan_weight=0.75,
    discriminator_start=1,
    gan_start=2,
    discriminator_optim=OptimConfig(lr=1e-3, warmup_steps=2, clip=0.0),
    ema_decay=0.9,
)
BRIDGE = replace(
    PIVOT,
    name="full-bridge",
    stage="bridge",
    after="full-pivot",
    averaged=True,
    posterior="mean",
    linear_start=False,
    gan_weight=0.0,
)
DECODER = replace(PIVOT, name="full-decoder", stage="decoder", after="full-bridge", averaged=True)
FULL = (PIVOT, BRIDGE, DECODER)


@pytest.fixture(scope="module")
def full_runs(
    tmp_path_factory: pytest.TempPathFactory, tiny_runs: Path, run_stage: StageRunner
) -> Path:
    """Finished runs of the three stages: read them, do not write into them."""
    root = tmp_path_factory.mktemp("full")
    shutil.copytree(tiny_runs / "tiny-pretrain", root / "tiny-pretrain")
    for config in FULL:
        run_stage(config, root)
    return root


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize("config", FULL, ids=lambda config: config.stage)
def test_a_stopped_run_ends_the_same(
    config: AutoencoderConfig,
    stop: int,
    full_runs: Path,
    run_stage: StageRunner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert config.after is not None
    shutil.copytree(full_runs / config.after, tmp_path / config.after)
    stage = importlib.import_module(f"training.{config.stage}")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "update", stop_before_update(stop, stage.update))
        with pytest.raises(StoppedError):
            run_stage(config, tmp_path)
    run_stage(config, tmp_path)
    resumed = tensors_of(tmp_path / config.name / "checkpoint")
    whole = tensors_of(full_runs / config.name / "checkpoint")
    assert resumed.keys() == whole.keys()
    assert [key for key, tensor in whole.items() if not resumed[key].equal(tensor)] == []


def files_of(root: Path, config: RunConfig) -> set[str]:
    return {path.stem for path in (root / config.name / "checkpoint").glob("*.safetensors")}


def test_checkpoints_keep_averages_and_the_adversary(full_runs: Path) -> None:
    adversary = {"discriminator", "discriminator_optimizer"}
    pivot = {"encoder", "decoder", "encoder_ema", "decoder_ema", "optimizer"}
    assert files_of(full_runs, PIVOT) == pivot | adversary
    assert files_of(full_runs, BRIDGE) == {"autoencoder", "autoencoder_ema", "optimizer"}
    assert files_of(full_runs, DECODER) == files_of(full_runs, BRIDGE) | adversary


def test_terms_come_in_at_their_steps(
    full_runs: Path, run_stage: StageRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(full_runs / "tiny-pretrain", tmp_path / "tiny-pretrain")
    told: list[dict[str, float]] = []
    monkeypatch.setattr(
        "training.log.RunLog.step", lambda self, step, num, **values: told.append(values)
    )
    run_stage(PIVOT, tmp_path)
    assert ["discriminator" in terms for terms in told] == [False, True, True, True]
    assert ["gan_weight" in terms for terms in told] == [False, False, True, True]
    assert told[0]["pivot_weight"] == PIVOT.pivot_weight
    assert told[1]["pivot_weight"] != PIVOT.pivot_weight


def test_a_stage_may_start_from_averaged_weights(full_runs: Path) -> None:
    pivot = tensors_of(full_runs / PIVOT.name / "checkpoint")
    bridge = tensors_of(full_runs / BRIDGE.name / "checkpoint")
    decoder = tensors_of(full_runs / DECODER.name / "checkpoint")
    key = "blocks.0.mlp.w3.weight"
    assert bridge[f"autoencoder/encoder.{key}"].equal(pivot[f"encoder_ema/{key}"])
    assert not bridge[f"autoencoder/encoder.{key}"].equal(pivot[f"encoder/{key}"])
    before = tensors_of(full_runs / "tiny-pretrain" / "checkpoint")
    assert not pivot[f"encoder_ema/{key}"].equal(before[f"encoder/{key}"])
    frozen = "bridge_encoder.to_moments.weight"
    assert decoder[f"autoencoder/{frozen}"].equal(bridge[f"autoencoder_ema/{frozen}"])
    trained = "decoder.to_pixels.weight"
    for other in (decoder[f"autoencoder/{trained}"], bridge[f"autoencoder_ema/{trained}"]):
        assert not decoder[f"autoencoder_ema/{trained}"].equal(other)
    moments = "bridge_decoder.in_proj.weight"
    assert not bridge[f"autoencoder_ema/{moments}"].equal(bridge[f"autoencoder/{moments}"])


def test_the_record_says_which_losses_were_used(full_runs: Path, tiny_runs: Path) -> None:
    extra = read_state(full_runs / DECODER.name / "checkpoint")["extra"]
    assert extra["perceptual"] == "gradient L1, which stands in for LPIPS"
    assert extra["discriminator"] == "heads on the run's frozen encoder, small-vit"
    plain = read_state(tiny_runs / "tiny-decoder" / "checkpoint")
    assert plain["extra"]["discriminator"] == "none"


def test_missing_weights_are_one_clear_line(
    full_runs: Path, run_stage: StageRunner, tmp_path: Path
) -> None:
    shutil.copytree(full_runs / BRIDGE.name, tmp_path / BRIDGE.name)
    with pytest.raises(CheckpointError, match=r"dino_weights: there is no file nowhere\.pth"):
        run_stage(replace(DECODER, dino_weights="nowhere.pth"), tmp_path)
    files = {"vgg_weights": "no-vgg.pth", "lpips_weights": "no-lpips.pth"}
    with pytest.raises(CheckpointError, match=r"vgg_weights: there is no file no-vgg\.pth"):
        run_stage(replace(DECODER, **files), tmp_path)


@pytest.mark.parametrize("posterior", ["mean", "sampled"])
def test_the_bridge_decodes_what_it_is_told(posterior: str) -> None:
    torch.manual_seed(0)
    model = RPiAE(MODEL)
    decoded: list[Tensor] = []
    model.bridge_decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(inputs[0]))
    seen: list[Posterior] = []
    model.bridge_encoder.register_forward_hook(lambda _, inputs, output: seen.append(output))
    config = replace(BRIDGE, posterior=posterior)
    generator = torch.Generator().manual_seed(1)
    bridge_loss(config, model, torch.rand(2, 3, 128, 128), generator, Processes(config.compute))
    assert decoded[0].equal(seen[0].mean) == (posterior == "mean")


TINY_PUBLISHED = PretrainedEncoderConfig(
    patch_size=8,
    image_size=32,
    width=16,
    depth=1,
    num_heads=2,
    hidden_width=32,
    position_grid=4,
    num_registers=2,
)


@pytest.fixture
def encoder_folder(tmp_path: Path) -> Path:
    """A published encoder as the hub keeps it, with the last norm's weights that RPiAE drops."""
    torch.manual_seed(0)
    model = build_encoder(TINY_PUBLISHED).model
    model.layernorm = nn.LayerNorm(TINY_PUBLISHED.width)
    model.save_pretrained(tmp_path / "published")
    return tmp_path / "published"


def test_an_encoder_comes_from_its_folder(encoder_folder: Path) -> None:
    torch.manual_seed(0)
    expected = build_encoder(TINY_PUBLISHED)
    encoder = build_encoder(TINY_PUBLISHED)
    load_pretrained_encoder(encoder, encoder_folder)
    images = torch.rand(1, 3, 32, 32)
    assert encoder(images).equal(expected(images))


def test_a_folder_that_does_not_fit_says_why(encoder_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"encoder_folder: there is no .*config\.json"):
        load_pretrained_encoder(build_encoder(TINY_PUBLISHED), tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"model\.encoder\.kind is small-vit"):
        load_pretrained_encoder(build_encoder(MODEL.encoder), encoder_folder)
    deeper = build_encoder(replace(TINY_PUBLISHED, depth=2))
    with pytest.raises(BundleError, match=r"encoder_folder: .* missing encoder\.layer\.1\."):
        load_pretrained_encoder(deeper, encoder_folder)
    (encoder_folder / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"encoder_folder: .* cannot be read"):
        load_pretrained_encoder(build_encoder(TINY_PUBLISHED), encoder_folder)


def test_the_papers_presets_are_buildable() -> None:
    for config in PAPER.values():
        assert isinstance(config, AutoencoderConfig)
        model = without_weights(lambda model=config.model: RPiAE(model))
        assert sum(p.numel() for p in model.parameters()) == 549_338_112
        if config.gan_weight:
            heads = without_weights(lambda: Discriminator(384))
            assert sum(p.numel() for p in heads.parameters()) == 7_386_245


def test_the_papers_presets_have_its_epochs() -> None:
    pivot, bridge, decoder = PAPER.values()
    assert isinstance(pivot, AutoencoderConfig)
    epoch = 1_281_167 // 256
    assert (pivot.steps, pivot.discriminator_start, pivot.gan_start) == (
        16 * epoch,
        6 * epoch,
        8 * epoch,
    )
    assert bridge.steps * bridge.batch_size == pytest.approx(32 * 1_281_167, rel=1e-3)
    assert bridge.optim.decay_to * bridge.steps == pytest.approx(16 * 1_281_167 / 512, abs=20)
    assert decoder.steps == pivot.steps
    assert [config.after for config in PAPER.values()] == [None, "rpiae-pivot", "rpiae-bridge"]


def test_the_papers_presets_are_runs_of_their_own() -> None:
    assert not set(PAPER) & {step.name for step in PLANS["stickers"]}
    for name, config in PAPER.items():
        assert PLANS[name] == (config,)
        assert json.dumps(config.model.encoder.kind) == '"dinov2-with-registers"'
