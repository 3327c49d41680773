"""Graphs in onnxruntime: bound tensors, session options, and providers that are asked for."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from models.bundle import denoiser_config
from models.manifest import BundleError, read_manifest
from models.onnx_model import TensorRTOptions
from models.onnx_providers import CPU, CUDA, TENSORRT, providers_for
from models.onnx_session import GraphSession, Tuning
from models.text_denoiser import TextDenoiserConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # the fixture exports a bundle

CPU_DEVICE, GPU = torch.device("cpu"), torch.device("cuda:1")
NAMES = [CUDA, TENSORRT, CPU]


@pytest.fixture
def velocity(exported_bundle: Path) -> Path:
    return exported_bundle / "onnx" / "fp32" / "velocity.onnx"


def velocity_inputs(bundle: Path, rows: int, length: int) -> dict[str, torch.Tensor]:
    config = denoiser_config(read_manifest(bundle))
    assert isinstance(config, TextDenoiserConfig)
    cached = (rows, config.depth, config.num_heads, length, config.width // config.num_heads)
    return {
        "x": torch.randn(rows, *config.latent_shape),
        "t": torch.rand(rows),
        "keys": torch.randn(cached),
        "values": torch.randn(cached),
        "mask": torch.ones(rows, length, dtype=torch.bool),
        "source": torch.randn(rows, config.num_image_tokens, config.width),
    }


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (3, 9), (16, 16)])
def test_bound_tensors_give_what_copied_ones_give(
    exported_bundle: Path, velocity: Path, rows: int, length: int
) -> None:
    inputs = velocity_inputs(exported_bundle, rows, length)
    ours = GraphSession(velocity)
    plain = onnxruntime.InferenceSession(velocity, Tuning().options(1), providers=[CPU])
    (expected,) = plain.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    for _ in range(2):  # also where the memory of the call before is used again
        (found,) = ours.run(inputs, [inputs["x"].shape])
        assert np.array_equal(found.numpy(), expected)
    uneven = {name: tensor.transpose(0, -1) for name, tensor in inputs.items()}
    (found,) = ours.run(
        {name: tensor.transpose(0, -1) for name, tensor in uneven.items()}, [inputs["x"].shape]
    )
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize(
    "tuning",
    [
        Tuning(optimisation="off"),
        Tuning(optimisation="basic"),
        Tuning(spinning=True),
        Tuning(arena=False),
        Tuning(memory_pattern=False),
        Tuning(prepacking=False),
    ],
)
def test_options_change_nothing_but_the_time(
    exported_bundle: Path, velocity: Path, tuning: Tuning
) -> None:
    inputs = velocity_inputs(exported_bundle, 2, 5)
    (expected,) = GraphSession(velocity).run(inputs, [inputs["x"].shape])
    (found,) = GraphSession(velocity, tuning=tuning).run(inputs, [inputs["x"].shape])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_options_are_those_that_are_asked_for() -> None:
    usual = Tuning().options(3)
    assert (usual.intra_op_num_threads, usual.inter_op_num_threads) == (3, 1)
    assert usual.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    other = Tuning(
        optimisation="basic", spinning=True, arena=False, memory_pattern=False, prepacking=False
    ).options(1)
    assert (other.enable_cpu_mem_arena, other.enable_mem_pattern) == (False, False)
    assert other.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert other.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert other.get_session_config_entry("session.disable_prepacking") == "1"


def test_a_cpu_needs_no_other_provider(velocity: Path) -> None:
    assert providers_for(velocity, CPU_DEVICE) == [(CPU, {})]


def test_providers_that_are_missing_are_named(velocity: Path) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(BundleError, match=f"no {CUDA}: install onnxruntime-gpu"):
        GraphSession(velocity, device="cuda:0")
    with pytest.raises(BundleError, match=f"no {TENSORRT}: install onnxruntime-gpu"):
        GraphSession(velocity, tensorrt=TensorRTOptions(8))


def test_cuda_computes_in_fp32_on_its_device(
    velocity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: NAMES)
    ((name, options),) = providers_for(velocity, GPU)
    assert name == CUDA
    assert (options["device_id"], options["use_tf32"]) == ("1", "0")


def test_tensorrt_builds_one_engine_for_all_batches(
    velocity: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: NAMES)
    wanted = TensorRTOptions(16, {"context_length": 16}, "fp16", tmp_path)
    (name, options), (behind, _) = providers_for(velocity, GPU, wanted)
    assert (name, behind) == (TENSORRT, CUDA)
    assert options["trt_profile_min_shapes"].startswith("x:1x8x4x4,t:1,keys:1x2x2x1x16,")
    assert options["trt_profile_opt_shapes"].startswith("x:4x8x4x4,t:4,keys:4x2x2x4x16,")
    assert options["trt_profile_max_shapes"].endswith("mask:16x16,source:16x4x32")
    assert (options["trt_fp16_enable"], options["trt_bf16_enable"]) == ("1", "0")
    for kind in ("engine", "timing"):
        assert options[f"trt_{kind}_cache_enable"] == "1"
        assert options[f"trt_{kind}_cache_path"] == str(tmp_path)
    (_, uncached), _ = providers_for(velocity, GPU, TensorRTOptions(16, {"context_length": 16}))
    assert not any("cache" in option for option in uncached)
    with pytest.raises(BundleError, match="an unknown axis context_length"):
        providers_for(velocity, GPU, TensorRTOptions(16))


def test_a_provider_that_does_not_start_is_no_silent_cpu(
    velocity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime warns and goes on with the CPU where it finds no GPU."""
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: NAMES)
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, options, providers: session(path, options, providers=[CPU]),
    )
    with pytest.raises(BundleError, match=f"could not start {CUDA}"):
        GraphSession(velocity, device="cuda:0")
