"""The loop that benchmarks measure against asks for the same as the stages do."""

import copy
from dataclasses import replace

import pytest
import torch

from benchmarks import reference_training as reference
from benchmarks.training import Row, markdown, measure
from benchmarks.training_contests import Contest
from models.autoencoder import RPiAE
from models.pivot import PivotReplica
from tests.unit.training.conftest import MODEL, TINY_STAGES
from training.adversary import Adversary
from training.batches import torch_generator
from training.bridge import bridge_loss
from training.config import AutoencoderConfig
from training.decoder import decoder_step
from training.perceptual import make_image_loss
from training.pivot import pivot_step
from training.processes import Processes

CONFIG = TINY_STAGES[1]
assert isinstance(CONFIG, AutoencoderConfig)
PROCESSES = Processes(CONFIG.compute)
IMAGE_LOSS, _ = make_image_loss(CONFIG)


@pytest.fixture
def model() -> RPiAE:
    torch.manual_seed(0)
    model = RPiAE(MODEL)
    for parameter in model.parameters():  # branches that start at zero must take part
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(CONFIG.batch_size, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def test_stage_1_has_the_gradients_of_the_reference(model: RPiAE, images: torch.Tensor) -> None:
    config = replace(CONFIG, pivot_norms_at="fc2", pivot_weight_cap=1e5)
    replica = PivotReplica(model.encoder)
    for parameter in model.encoder.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))  # so that the pivot pulls
    theirs = copy.deepcopy(model)
    loss = reference.pivot_loss(
        config,
        theirs.encoder,
        theirs.decoder,
        replica.encoder,
        IMAGE_LOSS,
        images,
        torch_generator(0, "noise", 0),
    )
    loss.backward()
    pivot_step(
        config,
        model.encoder,
        model.decoder,
        replica,
        images,
        torch_generator(0, "noise", 0),
        image_loss=IMAGE_LOSS,
        adversary=Adversary(config, replica.encoder, PROCESSES),
        step=0,
        processes=PROCESSES,
    )
    pairs = zip(model.named_parameters(), theirs.parameters(), strict=True)
    compared = [(name, ours.grad, other.grad) for (name, ours), other in pairs]
    assert any(grad is not None and grad.any() for _, grad, _ in compared)
    for name, ours, other in compared:
        assert (ours is None) == (other is None), name
        if ours is not None and other is not None:
            torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-6, msg=name)


def test_stages_2_and_3_have_the_loss_of_the_reference(model: RPiAE, images: torch.Tensor) -> None:
    theirs = reference.bridge_loss(CONFIG, model, images, torch_generator(0, "noise", 0))
    ours, _ = bridge_loss(CONFIG, model, images, torch_generator(0, "noise", 0), PROCESSES)
    torch.testing.assert_close(ours, theirs)
    terms = decoder_step(
        CONFIG,
        model,
        images,
        torch_generator(0, "noise", 0),
        image_loss=IMAGE_LOSS,
        adversary=Adversary(CONFIG, model.encoder, PROCESSES),
        step=0,
        processes=PROCESSES,
    )
    wanted = reference.decoder_loss(model, IMAGE_LOSS, images)
    assert terms["image"] == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_the_reference_loop_learns_and_averages(model: RPiAE, images: torch.Tensor) -> None:
    loop = reference.ReferenceLoop([model], model.decoder.parameters(), CONFIG.optim)
    losses = [loop(lambda: reference.decoder_loss(model, IMAGE_LOSS, images)) for _ in range(8)]
    assert losses[-1] < losses[0]


def test_ratios_are_of_medians_and_leave_the_first_step_out() -> None:
    steps: list[tuple[str, int]] = []
    sides = {
        name: lambda number, name=name: steps.append((name, number))
        for name in ("reference", "torch", "onednn")
    }
    rows = list(measure(Contest("1 pivot", 16, sides), rounds=3))
    assert steps[:3] == [("reference", 0), ("torch", 0), ("onednn", 0)]
    assert len(steps) == 3 * 4
    assert [row.kernels for row in rows] == ["torch", "onednn"]
    assert all(row.ratio == row.reference_s / row.ours_s for row in rows)


def test_the_table_has_rates_ratios_and_waits() -> None:
    row = Row(
        stage="1 pivot",
        batch=16,
        kernels="onednn",
        reference_s=0.5,
        ours_s=0.25,
        ratio=2.0,
        spread=(1.9, 2.1),
    )
    report = {
        "rows": [vars(row)],
        "waits": [{"data": "stickers", "images_per_s": 60.4, "wait_share": 0.012}],
        "rounds": 15,
        "hardware": {"processor": "some", "cores": 2},
        "versions": {"torch": "2"},
        "revision": "0123456789abcdef",
    }
    text = markdown(report)
    assert "| 1 pivot | onednn | 64/s | 32/s | **2.00** (1.90 to 2.10) |" in text
    assert "| stickers | 60/s | 1.2% |" in text
