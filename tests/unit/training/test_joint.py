"""Encoder, bridge and decoder in one stage; decoders on unbridged tokens."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.autoencoder import RPiAE
from models.bridge import BridgeConfig
from models.pivot import PivotReplica, pivot_loss
from tests.unit.training.conftest import MODEL, TINY_STAGES, StageRunner
from tests.unit.training.test_processes import (
    SCRIPTS,
    TRAIN,
    ends_with_gloo,
    finish,
    last_terms,
)
from tests.unit.training.test_stages import StoppedError, stop_before_update, tensors_of
from training import joint
from training.checkpoint import CheckpointError
from training.config import AutoencoderConfig, ComputeConfig
from training.dry_run import estimate
from training.joint import joint_step
from training.losses import kl_mean, noise_tokens
from training.overrides import flat
from training.perceptual import make_image_loss
from training.processes import Processes
from training.run import Run

PIVOT = TINY_STAGES[1]
assert isinstance(PIVOT, AutoencoderConfig)
JOINT = replace(PIVOT, name="tiny-joint", stage="joint", num_components=16)
SCRATCH = replace(JOINT, name="tiny-scratch", after=None, pivot_weight=0.0, noise_tau=0.0)
IDENTITY = replace(
    MODEL, bridge=BridgeConfig(kind="identity", token_width=32, latent_width=32, num_heads=1)
)
FROZEN = replace(
    PIVOT,
    name="tiny-frozen",
    stage="decoder",
    after="tiny-pretrain",
    model=IDENTITY,
    refit_decoder=True,
    decoder_noise_tau=0.25,
)


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "INIT_IMAGES", 16)


def trained(
    config: AutoencoderConfig, tiny_runs: Path, run_stage: StageRunner, root: Path
) -> dict[str, torch.Tensor]:
    if config.after is not None:
        shutil.copytree(tiny_runs / config.after, root / config.after, dirs_exist_ok=True)
    run_stage(config, root)
    return tensors_of(root / config.name / "checkpoint")


@pytest.mark.parametrize("config", [JOINT, SCRATCH, FROZEN], ids=lambda config: config.name)
def test_a_stopped_run_ends_with_the_weights_of_one_that_was_not(
    config: AutoencoderConfig,
    tiny_runs: Path,
    run_stage: StageRunner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from training import decoder

    stage = joint if config.stage == "joint" else decoder
    whole = trained(config, tiny_runs, run_stage, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "update", stop_before_update(2, stage.update))
        with pytest.raises(StoppedError):
            trained(config, tiny_runs, run_stage, tmp_path / "stopped")
    torch.manual_seed(1)  # nothing depends on what was drawn before
    resumed = trained(config, tiny_runs, run_stage, tmp_path / "stopped")
    assert [key for key, tensor in whole.items() if not resumed[key].equal(tensor)] == []


@pytest.mark.parametrize("pivot_weight", [0.0, 0.2])
def test_the_step_leaves_the_gradient_of_the_weighted_sum(pivot_weight: float) -> None:
    config = replace(JOINT, pivot_weight=pivot_weight, kl_weight=0.1)
    torch.manual_seed(0)
    model = RPiAE(config.model)
    start = copy.deepcopy(model.encoder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    twin, replica = copy.deepcopy(model), PivotReplica(start) if pivot_weight else None
    images, (image_loss, _) = torch.rand(2, 3, 128, 128), make_image_loss(config)
    terms = joint_step(
        config,
        model,
        replica,
        images,
        torch.Generator().manual_seed(4),
        image_loss=image_loss,
        step=0,
        processes=Processes(config.compute),
    )

    generator = torch.Generator().manual_seed(4)
    tokens = twin.encoder(images)
    posterior = twin.bridge_encoder(noise_tokens(tokens, config.noise_tau, generator))
    painted = twin.decoder(twin.bridge_decoder(posterior.sample(generator)))
    loss = image_loss(painted, images)
    kl = kl_mean(posterior.mean, posterior.logvar)
    total = loss + config.kl_weight * kl
    assert terms["image"] == pytest.approx(loss.item(), rel=1e-5)
    assert terms["kl"] == pytest.approx(kl.item(), rel=1e-5)
    assert ("pivot" in terms) == (pivot_weight > 0)
    if replica is not None:
        distance = pivot_loss(tokens, replica(images))
        ours, theirs = (
            torch.autograd.grad(part, tokens, retain_graph=True)[0].norm().item()
            for part in (total, distance)
        )
        expected = min(config.pivot_weight * ours / theirs, config.pivot_weight_cap)
        assert terms["pivot_weight"] == pytest.approx(expected, rel=1e-4)
        total = total + terms["pivot_weight"] * distance
    total.backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(parameter.grad, other.grad, rtol=1e-3, atol=1e-6), name


def test_from_scratch_begins_at_the_principal_components(
    run_stage: StageRunner, tmp_path: Path
) -> None:
    """The closed-form start paints: its first loss is far below that of a random one."""
    losses = []
    for linear_start in (True, False):
        config = replace(SCRATCH, name=f"start-{linear_start}", linear_start=linear_start, steps=1)
        run_stage(config, tmp_path)
        losses.append(last_terms(tmp_path / config.name)["image"])
    assert losses[0] < 0.6 * losses[1]


def test_a_frozen_encoder_stays_and_its_tokens_are_the_latents(
    tiny_runs: Path, run_stage: StageRunner, tmp_path: Path
) -> None:
    found = trained(FROZEN, tiny_runs, run_stage, tmp_path)
    before = tensors_of(tiny_runs / "tiny-pretrain" / "checkpoint")
    encoder = {key: value for key, value in before.items() if key.startswith("encoder/")}
    assert encoder
    for key, value in encoder.items():
        assert found[f"autoencoder/encoder.{key.removeprefix('encoder/')}"].equal(value)
    assert not any("bridge" in key for key in found)


def test_an_identity_bridge_goes_on_with_the_decoder_of_a_pivot_run(
    tiny_runs: Path, run_stage: StageRunner, tmp_path: Path
) -> None:
    config = replace(
        FROZEN, after="tiny-pivot", refit_decoder=False, optim=replace(FROZEN.optim, lr=1e-12)
    )
    found = trained(config, tiny_runs, run_stage, tmp_path)
    before = tensors_of(tiny_runs / "tiny-pivot" / "checkpoint")
    for part in ("encoder", "decoder"):
        mine = {key: v for key, v in before.items() if key.startswith(f"{part}/")}
        assert mine
        for key, value in mine.items():
            other = found[f"autoencoder/{part}.{key.removeprefix(f'{part}/')}"]
            assert torch.allclose(other, value, atol=1e-9), key


def test_a_decoder_that_is_nowhere_is_missed(
    tiny_runs: Path, run_stage: StageRunner, tmp_path: Path
) -> None:
    config = replace(FROZEN, refit_decoder=False)
    with pytest.raises(CheckpointError, match="refit_decoder=true"):
        trained(config, tiny_runs, run_stage, tmp_path)


def test_decoder_noise_changes_the_decoder_alone(
    tiny_runs: Path, run_stage: StageRunner, tmp_path: Path
) -> None:
    plain = replace(FROZEN, decoder_noise_tau=0.0)
    runs = [
        trained(config, tiny_runs, run_stage, tmp_path / str(number))
        for number, config in enumerate((FROZEN, plain))
    ]
    different = {
        key.split(".")[0] for key, value in runs[0].items() if not runs[1][key].equal(value)
    }
    assert different >= {"autoencoder/decoder"}
    assert "autoencoder/encoder" not in different


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gan_weight": 0.5}, "no discriminator"),
        ({"after": None}, "pivot_weight must be 0, got 0.2"),
    ],
)
def test_what_the_joint_stage_cannot_do_is_refused(changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(JOINT, **changes)


@pytest.mark.parametrize("config", [JOINT, SCRATCH, FROZEN], ids=lambda config: config.name)
def test_the_dry_run_counts_what_is_trained(config: AutoencoderConfig) -> None:
    found = estimate(config, 1)
    trained = {name for name, (count, is_trained) in found.parameters.items() if is_trained}
    if config.stage == "decoder":
        assert trained == {"decoder"}
    else:
        assert trained == {"encoder", "bridge_encoder", "bridge_decoder", "decoder"}
        total = sum(count for count, is_trained in found.parameters.values() if is_trained)
        assert total == sum(p.numel() for p in RPiAE(config.model).parameters())
    assert ("pivot replica" in found.parameters) == (config is JOINT)
    assert found.flops_per_step > 0


@ends_with_gloo
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_two_processes_train_as_one(
    tiny_runs: Path, run_stage: StageRunner, tmp_path: Path
) -> None:
    config = replace(JOINT, batch_size=3, linear_start=False, compute=ComputeConfig())
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        shutil.copytree(tiny_runs / "tiny-pretrain", root / "tiny-pretrain")
    run_stage(config, one)
    skipped = ("stage", "columns", "kind")
    settings = [
        part
        for name, value in flat(config).items()
        if not name.endswith(skipped)
        for part in ("--set", f"{name}={value}")
    ]
    finish(
        str(SCRIPTS / "torchrun"),
        "--standalone",
        "--nproc-per-node=2",
        *TRAIN,
        "compare-end-to-end-joint",
        "--root",
        str(two),
        *settings,
    )
    found, expected = (last_terms(root / config.name) for root in (two, one))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert json.loads((two / config.name / "checkpoint" / "state.json").read_text())["step"] == 4
    assert Run(two, config).finished
