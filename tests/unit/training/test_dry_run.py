"""The dry run counts what really runs: parameters, products and kept activations."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from models.layers import Block
from models.text_denoiser import TextDenoiser, TextDenoiserConfig
from tests.unit.training.conftest import MODEL, TINY_STAGES
from training.cli import train_command
from training.config import AutoencoderConfig, ComputeConfig, DiffusionConfig, RunConfig
from training.dry_run import dry_run_tables, estimate
from training.meta_cost import measure, storage_id
from training.presets import PAPER, STICKERS

DIFFUSION = TINY_STAGES[-1]


def kept_bytes(work: Callable[[], Tensor], module: nn.Module) -> int:
    """What autograd really keeps of a forward pass, weights and buffers apart."""
    weights = {storage_id(t) for t in (*module.parameters(), *module.buffers())}
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if storage_id(tensor) not in weights:
            storages[storage_id(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    size = sum(tensor.untyped_storage().nbytes() for tensor in storages.values())
    del result
    return size


def on_meta(config: TextDenoiserConfig) -> TextDenoiser:
    with torch.device("meta"):
        return TextDenoiser(config)


def denoise(denoiser: TextDenoiser, num: int) -> Tensor:
    config = denoiser.config
    latents = torch.ones(num, *config.latent_shape)
    prompts = torch.ones(num, config.max_prompt_tokens, dtype=torch.long)
    context = denoiser.prefill(prompts, latents)
    return denoiser.velocity(latents, torch.ones(num), context).square().mean()


@pytest.mark.parametrize("config", TINY_STAGES, ids=lambda config: config.stage)
def test_parameters_are_those_of_the_checkpoint(config: RunConfig, tiny_runs: Path) -> None:
    checkpoint = tiny_runs / config.name / "checkpoint"
    found = estimate(config, 1).parameters
    saved = {
        path.stem: sum(tensor.numel() for tensor in load_file(path).values())
        for path in checkpoint.glob("*.safetensors")
    }
    trained = sum(count for count, is_trained in found.values() if is_trained)
    # AdamW keeps two moments of each weight that has gradients; the last layer of the denoiser's
    # text expert has some without, as nothing looks at its outputs.
    moments = load_file(checkpoint / "optimizer.safetensors")
    kept = sum(tensor.numel() for name, tensor in moments.items() if "step" not in name)
    assert 0.8 * 2 * trained < kept <= 2 * trained
    for name, (count, _) in found.items():
        if name in saved and name != "autoencoder":  # whose statistics are no parameters
            assert saved[name] == count


def test_flops_of_a_prediction_are_those_of_the_real_one() -> None:
    assert isinstance(DIFFUSION, DiffusionConfig)
    real, empty = TextDenoiser(DIFFUSION.denoiser), on_meta(DIFFUSION.denoiser)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        denoise(real, 3)
    assert measure(lambda: denoise(empty, 3), set()).flops == counter.get_total_flops()


def test_flops_of_a_backward_pass_follow_from_the_sizes() -> None:
    num, tokens, width, hidden = 3, 5, 32, 48
    with torch.device("meta"):
        block = Block(width, num_heads=2, hidden_width=hidden)
        x = torch.empty(num, tokens, width, requires_grad=True)
    found = measure(lambda: block(x).sum().backward(), set())
    weights = 4 * width**2 + 3 * width * hidden  # qkv and proj; two gates and the way back
    linear = 2 * num * tokens * weights
    square = 2 * num * tokens**2 * width
    # Each product has two gradients; fused attention computes queries times keys once more.
    assert found.flops == 3 * linear + 2 * square + 4 * square + square


def test_activations_are_those_that_autograd_keeps() -> None:
    assert isinstance(DIFFUSION, DiffusionConfig)
    real, empty = TextDenoiser(DIFFUSION.denoiser), on_meta(DIFFUSION.denoiser)
    weights = {storage_id(t) for t in (*empty.parameters(), *empty.buffers())}
    found = measure(lambda: denoise(empty, 4).backward(), weights).activation_bytes
    assert found == pytest.approx(kept_bytes(lambda: denoise(real, 4), real), rel=0.1)


def test_flops_grow_with_the_batch_and_memory_with_the_part() -> None:
    one = estimate(DIFFUSION, 1)
    large = estimate(replace(DIFFUSION, batch_size=4 * DIFFUSION.batch_size), 1)
    assert large.flops_per_step == pytest.approx(4 * one.flops_per_step, rel=0.01)
    split = replace(
        DIFFUSION,
        batch_size=4 * DIFFUSION.batch_size,
        compute=ComputeConfig(micro_batches=2, precision="bf16"),
    )
    spread = estimate(split, 2)
    assert spread.part_size == one.part_size
    assert spread.flops_per_step == large.flops_per_step
    assert spread.memory["activations"] == one.memory["activations"] // 2


def test_hours_follow_from_the_stated_gpus() -> None:
    compute = ComputeConfig(num_gpus=8, gpu_tflops=100)
    config = replace(DIFFUSION, steps=10**6, compute=compute)
    found = estimate(config, 8)
    hours = (1e6 * found.flops_per_step + found.flops_once) / (8 * 100e12 * 3600)
    run = dry_run_tables(config)[1]
    names, values = (list(column.cells) for column in run.columns)
    assert values[names.index("hours on 8 GPUs of 100 TFLOP/s")] == f"{hours:,.2f}"
    assert values[names.index("samples")] == f"{config.batch_size * 10**6:,}"


def test_the_networks_that_judge_pictures_are_counted() -> None:
    pivot = TINY_STAGES[1]
    assert isinstance(pivot, AutoencoderConfig)
    plain = estimate(pivot, 1)
    judged = replace(pivot, vgg_weights="vgg", lpips_weights="lpips", gan_weight=1.0, ema_decay=0.5)
    found = estimate(judged, 1)
    assert found.parameters["lpips"] == (14_714_688 + 1_472, False)  # VGG16's convolutions; heads
    assert found.parameters["discriminator"][1]
    assert found.parameters.keys() - plain.parameters.keys() == {"lpips", "discriminator"}
    assert found.flops_per_step > 2 * plain.flops_per_step
    assert found.memory["averaged weights"] == found.memory["weights"]
    assert found.memory["activations"] > plain.memory["activations"]


@pytest.mark.parametrize("config", PAPER.values(), ids=lambda config: config.name)
def test_presets_of_the_paper_can_be_counted_without_their_files(config: RunConfig) -> None:
    found = estimate(config, 8)
    assert found.part_size == config.batch_size / 8
    assert sum(count for count, _ in found.parameters.values()) > 5e8


def test_the_command_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(train_command)
    result = CliRunner().invoke(app, ["stickers", "--dry-run", "--root", str(tmp_path / "runs")])
    assert result.exit_code == 0, result.output
    for config in STICKERS.values():
        assert f"{config.name}: modules" in result.output
    assert "pivot replica" in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_model_too_large_for_this_machine_is_counted() -> None:
    """A billion parameters: 16 GB with gradients and optimizer, none of it allocated."""
    assert isinstance(DIFFUSION, DiffusionConfig)
    denoiser = replace(DIFFUSION.denoiser, width=2048, text_width=1024, depth=16, num_heads=16)
    found = estimate(replace(DIFFUSION, denoiser=denoiser, model=MODEL), 1)
    count = found.parameters["denoiser"][0]
    assert count > 1e9
    assert found.memory_bytes > 20 * count  # weights, gradients, two moments, average
