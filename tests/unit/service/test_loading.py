"""Which runtimes are tried for a bundle, and what is measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from models.manifest import EngineTarget, Export, Manifest, read_manifest, write_manifest
from service import loading
from service.choosing import Candidate, Choice
from service.engine.calibration import Calibration
from service.loading import load_backend, load_model
from service.settings import load_settings

ANEW = Calibration(max_rows=7, max_images=1)
GPU = EngineTarget(gpu="NVIDIA H100", compute_capability="9.0", tensorrt="10.9.0")


def export(precision: str, **fields: Any) -> Export:
    return Export(
        precision=precision,
        opset=23,
        weights_sha256="",
        made_with={},
        artifacts=[],
        picture_psnr_db=None,
        min_picture_psnr_db=50,
        **fields,
    )


def manifest(*exports: Export, draws: bool = True) -> Manifest:
    return Manifest(
        name="m",
        tasks=["decode"],
        image_size=(16, 16),
        latent_shape=(4, 2, 2),
        latents_mean=[0.0],
        latents_std=[1.0],
        timestep_shift=1.0,
        model={"denoiser": {}} if draws else {},
        exports=[each for each in exports if each.runtime == "onnx"],
        engines=[each for each in exports if each.runtime == "tensorrt"],
    )


FP32, INT8 = export("fp32"), export("int8")
ROUNDED = export("bf16", proven_by="onnxruntime-rounded")
ENGINES = export("fp32", runtime="tensorrt", target=GPU)


@pytest.mark.parametrize(
    ("of", "settings", "on_gpu", "expected"),
    [
        (manifest(), {}, False, ["torch"]),
        (manifest(FP32), {}, False, ["torch", "onnxruntime"]),
        (manifest(INT8), {}, False, ["torch"]),
        (manifest(FP32, INT8), {"precision": "int8"}, False, ["torch", "onnxruntime"]),
        (manifest(FP32), {"backend": "torch"}, False, ["torch"]),
        (manifest(), {"backend": "onnxruntime"}, False, ["onnxruntime"]),
        (manifest(ROUNDED), {"precision": "bf16"}, True, ["torch"]),
        (manifest(FP32), {"precision": "fp8"}, True, ["torch"]),
        (manifest(), {"precision": "fp16"}, True, ["onnxruntime"]),
        (manifest(FP32, ENGINES), {}, True, ["torch", "onnxruntime", "tensorrt"]),
        (manifest(FP32, ENGINES), {}, False, ["torch", "onnxruntime"]),
        (manifest(), {"backend": "tensorrt"}, False, ["tensorrt"]),
    ],
)
def test_which_runtimes_are_tried(
    monkeypatch: pytest.MonkeyPatch,
    of: Manifest,
    settings: dict[str, Any],
    on_gpu: bool,
    expected: list[str],
) -> None:
    tried: list[str] = []

    def choose(candidates: Sequence[Candidate], call: str) -> Choice:
        tried.extend(candidate.name for candidate in candidates)
        assert call == "velocity"
        return Choice(None)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "choose", choose)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    load_backend(load_settings(**settings), Path("m"), of)
    assert tried == expected


def test_without_a_denoiser_decode_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def choose(_: Sequence[Candidate], call: str) -> Choice:
        calls.append(call)
        return Choice(None)  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "choose", choose)
    load_backend(load_settings(), Path("m"), manifest(draws=False))
    assert calls == ["decode"]


def test_measurements_hold_for_a_model_of_the_same_kind(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(threads=1)
    first = load_model(settings, tiny_bundle)
    monkeypatch.setattr(loading, "calibrate", lambda *_, **__: ANEW)
    assert load_model(settings, tiny_bundle, before=first).calibration is first.calibration
    assert load_model(settings, tiny_bundle).calibration is ANEW
    limited = load_settings(threads=1, max_rows=5)
    assert load_model(limited, tiny_bundle, before=first).calibration is ANEW
    fields = read_manifest(tiny_bundle)
    write_manifest(tmp_path, fields.model_copy(update={"vocabulary_file": None}))
    fake = load_settings(backend="fake")
    assert load_model(fake, tmp_path, before=first).calibration is ANEW
