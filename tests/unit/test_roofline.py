"""The arithmetic of the roofline, and its measurement on a device that has no roof."""

import pytest
import torch

from benchmarks.roofline import PEAK_TFLOPS, Share, line, measure, peak_tflops, step_flops
from models.class_denoiser import ClassDenoiserConfig
from models.layers import swiglu_width
from service.backends.compiling import Compiler
from tests.recorded_calls import Recording

TINY = ClassDenoiserConfig(
    latent_channels=6, latent_side=4, width=64, depth=2, num_heads=4, num_classes=5
)


@pytest.mark.parametrize("config", [TINY, ClassDenoiserConfig()])
@pytest.mark.parametrize("batch", [1, 16])
def test_multiplications_are_those_of_the_formula(config: ClassDenoiserConfig, batch: int) -> None:
    width, num_tokens = config.width, config.latent_side**2
    hidden = swiglu_width(width)
    of_token = 4 * width**2 + 3 * width * hidden  # queries, keys, values, output; feed-forward
    of_row = 6 * width**2  # shifts, scales and gates
    attention = 2 * num_tokens**2 * width
    block = num_tokens * of_token + of_row + attention
    ends = 2 * num_tokens * config.latent_channels * width + 2 * width**2
    time = 2 * 256 * width + width**2
    assert step_flops(config, batch) == 2 * batch * (config.depth * block + ends + time)


def test_a_share_is_what_was_done_of_what_could_be() -> None:
    share = Share(batch=16, flops=4 * 10**12, seconds=0.01, peak_tflops=800.0)
    assert share.tflops == pytest.approx(400)
    assert share.of_peak == pytest.approx(0.5)
    assert line(share, "GPU") == "GPU: 10.00 ms for a step of batch 16, 400 TFLOP/s, 50% of 800"


@pytest.mark.parametrize(
    ("gpu", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
    ],
)
def test_a_gpu_is_found_by_its_longest_name(gpu: str, name: str) -> None:
    assert peak_tflops(gpu) == PEAK_TFLOPS[name]


def test_an_unknown_gpu_has_no_roof() -> None:
    assert peak_tflops("Radeon") is None


def test_the_measurement_runs_the_recorded_step() -> None:
    recording, settled = Recording(), []
    compiler = Compiler(lambda _: None, recording)
    seconds = measure(TINY, 3, 4, torch.device("cpu"), compiler, lambda: settled.append(None))
    assert seconds > 0
    assert recording.num_captured == 1
    assert recording.num_replays == 1 + 4
    assert len(settled) == 2 * 4
