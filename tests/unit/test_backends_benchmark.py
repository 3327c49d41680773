"""Which runtimes are compared, and that they are compared on the same pictures."""

from pathlib import Path

import torch

from benchmarks import backends
from benchmarks.backends_sides import load_sides, loaders
from models.manifest import BundleError, read_manifest
from service.backends.base import Backend


def test_the_runtimes_that_are_compared(exported_bundle: Path) -> None:
    manifest = read_manifest(exported_bundle)

    def names(device: str, *, full: bool = False) -> list[str]:
        return list(loaders(exported_bundle, manifest, device=device, threads=1, full=full))

    quick, full, gpu = names("cpu"), names("cpu", full=True), names("cuda:0")
    assert quick == ["torch", "torch, packed", "onnxruntime fp32", "onnxruntime int8"]
    assert set(full) - set(quick) == {"torch, compiled", "torch bf16", "torch int8", "torch fp8"}
    assert {quick[0], full[0], gpu[0]} == {"torch"}  # what the others are compared with
    assert {"torch, compiled", "torch bf16, compiled, CUDA graphs"} < set(gpu)


def test_a_runtime_that_is_not_here_is_left_out(exported_bundle: Path) -> None:
    loads = loaders(
        exported_bundle, read_manifest(exported_bundle), device="cpu", threads=1, full=True
    )

    def missing() -> Backend:
        raise BundleError("no compiler")

    told: list[str] = []
    chosen = {name: loads[name] for name in ("torch", "torch fp8")} | {"torch, compiled": missing}
    sides = load_sides(chosen, told.append)
    assert {name: side.name for name, side in sides.items()} == {
        "torch": "torch",
        "torch fp8": "torch-fp8",
    }
    assert told == ["torch, compiled: left out: no compiler"]


def test_all_draw_the_same_pictures(exported_bundle: Path) -> None:
    """Guided, from prompts and seeds, as the sampler does it."""
    manifest = read_manifest(exported_bundle)
    sides = load_sides(loaders(exported_bundle, manifest, device="cpu", threads=1, full=False))
    prompts, seeds = ["a red circle", "blue"], [3, 4]
    pictures = {
        name: backends.paint(side, prompts, seeds, manifest, "cpu") for name, side in sides.items()
    }
    expected = pictures["torch"]
    assert (expected[0] - expected[1]).abs().max() > 0.1
    for name in ("torch, packed", "onnxruntime fp32"):
        torch.testing.assert_close(pictures[name], expected, rtol=0, atol=1e-3)


def test_a_guide_model_is_drawn_with(exported_class_bundle: Path) -> None:
    manifest = read_manifest(exported_class_bundle)
    assert manifest.guidance == "autoguidance"
    loads = loaders(exported_class_bundle, manifest, device="cpu", threads=1, full=False)
    sides = load_sides(
        {name: loads[name] for name in ("torch", "torch, packed", "onnxruntime fp32")}
    )
    first, *others = (
        backends.paint(side, ["", ""], [3, 4], manifest, "cpu") for side in sides.values()
    )
    assert (first[0] - first[1]).abs().max() > 0.01
    for pictures in others:
        torch.testing.assert_close(pictures, first, rtol=0, atol=2e-3)
