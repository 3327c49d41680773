"""The port that benchmarks measure against computes what the reference implementation computes."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import reference_port
from export.dims import PublishedDims

PARITY = Path(__file__).parents[1] / "data" / "parity"
DIMS = PublishedDims.read(PARITY / "config.json")


def read(name: str) -> dict[str, Tensor]:
    return load_file(PARITY / f"{name}.safetensors")


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= 1e-5


def test_encode_and_decode() -> None:
    weights, expected = read("stage3_state"), read("stage3_io")
    mean, logvar = reference_port.encode(expected["image"], weights, DIMS)
    assert_close(mean, expected["posterior_mean"])
    assert_close(logvar, expected["posterior_logvar"])
    mean, _ = reference_port.encode(expected["image_other_size"], weights, DIMS)
    assert_close(mean, expected["latents_other_size"])
    images = reference_port.decode(expected["latents"], weights, DIMS)
    assert_close(images, expected["reconstruction"])


def test_velocity() -> None:
    weights, expected = read("dit_state"), read("dit_io")
    inputs = (expected["latents"], expected["t"], expected["labels"])
    velocity = reference_port.velocity(*inputs, weights, DIMS)
    assert_close(velocity, expected["velocity"])
    assert torch.isfinite(velocity).all()
