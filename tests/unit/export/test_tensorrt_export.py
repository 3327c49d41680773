"""Engines by a double of TensorRT: what the builder is told, what is recorded and refused."""

import inspect
import shutil
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from export import tensorrt_export
from export.cli import export_command
from export.onnx_export import TOLERANCES
from export.onnx_files import ExportError
from export.parity import Tolerances
from export.tensorrt_export import WORKSPACE_GIB, export_tensorrt, trtexec_lines
from export.tensorrt_profiles import MAX_ROWS
from models.engines import find_engines, usable_engines
from models.manifest import BundleError, EngineTarget, read_manifest, write_manifest
from models.tensorrt_library import engine_target, load_tensorrt
from service.cli import app
from tests.recorded_tensorrt import GPU, RecordedTensorRT, install

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # the fixtures export bundles

FOLDER = "engines/nvidia-h100-80gb-hbm3-9.0-10.15.1.29"
GRAPHS = ["encode", "decode", "prefill", "prefill_source", "velocity"]


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> RecordedTensorRT:
    return install(monkeypatch)


@pytest.fixture
def bundle(exported_bundle: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "tiny"
    shutil.copytree(exported_bundle, directory)
    return directory


def test_engines_are_built_proven_and_recorded(engine_bundle: Path) -> None:
    manifest = read_manifest(engine_bundle)
    (engines,) = manifest.engines
    assert [artifact.graph for artifact in engines.artifacts] == GRAPHS
    assert engines.passed
    assert engines.runtime == engines.proven_by == "tensorrt"
    assert engines.target == GPU
    assert engines.made_with["tensorrt"] == GPU.tensorrt
    assert engines.made_with["torch"] == torch.__version__
    assert engines.picture_psnr_db is not None
    assert engines.picture_psnr_db > 50
    for artifact in engines.artifacts:
        (file,) = artifact.files
        assert file.path == f"{FOLDER}/{artifact.graph}.fp32.plan"
        # Of 16 rows in buckets of 4, and of every length, padded to the longest.
        assert artifact.parity.batches == [1, 3, 16]
        assert artifact.parity.max_error < 1e-4
    assert (engine_bundle / FOLDER / "timing.cache").read_bytes() == b"measured;" * len(GRAPHS)
    assert usable_engines(engine_bundle, manifest, "fp32", GPU) == engines
    assert [export.precision for export in manifest.exports] == ["fp32", "int8"]


def test_what_the_builder_is_told(bundle: Path, tensorrt: RecordedTensorRT) -> None:
    export_tensorrt(bundle, "fp32", device="cpu", max_rows=2, workspace_gib=1.5)
    sources = [Path(path).name for (path,) in tensorrt.named("parse_from_file")]
    assert sources == [f"{name}.onnx" for name in GRAPHS]
    assert tensorrt.named("set_memory_pool_limit") == [(3 * 2**29,)] * len(GRAPHS)
    assert tensorrt.named("clear_flag") == [(tensorrt.BuilderFlag.TF32,)] * len(GRAPHS)
    # The measurements of one graph help to build the next.
    assert tensorrt.named("set_timing_cache")[:2] == [(b"",), (b"measured;",)]


def test_fp16_leaves_the_flags_alone_and_makes_its_graphs_first(
    bundle: Path, tensorrt: RecordedTensorRT
) -> None:
    said: list[str] = []
    engines = export_tensorrt(bundle, "fp16", said.append, device="cpu", max_rows=1)
    assert said[0].startswith("ONNX comes first: ")
    assert engines.passed
    assert tensorrt.named("clear_flag") == []
    assert all("/onnx/fp16/" in path for (path,) in tensorrt.named("parse_from_file"))
    manifest = read_manifest(bundle)
    assert [export.precision for export in manifest.exports] == ["fp32", "int8", "fp16"]
    assert find_engines(manifest, "fp16", GPU) == engines
    assert find_engines(manifest, "fp32", GPU) is None


def test_a_timing_cache_of_another_gpu_is_not_taken(
    bundle: Path, tensorrt: RecordedTensorRT
) -> None:
    folder = bundle / FOLDER
    folder.mkdir(parents=True)
    (folder / "timing.cache").write_bytes(b"of another GPU;")
    export_tensorrt(bundle, "fp32", device="cpu", max_rows=1)
    assert tensorrt.named("set_timing_cache")[:3] == [
        (b"of another GPU;",), (b"",), (b"measured;",),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("parse", r"encode: TensorRT 10\.15\.1\.29 cannot read it: In node 3 .*UNSUPPORTED_NODE"),
        ("profile", "encode: TensorRT refused a profile of {'images'"),
        ("build", "encode: TensorRT built no engine of it"),
    ],
)
def test_what_the_builder_refuses(
    bundle: Path, tensorrt: RecordedTensorRT, refused: str, message: str
) -> None:
    tensorrt.refused = refused
    with pytest.raises(ExportError, match=message):
        export_tensorrt(bundle, "fp32", device="cpu", max_rows=1)
    assert read_manifest(bundle).engines == []


@pytest.mark.usefixtures("tensorrt")
def test_engines_that_differ_are_recorded_and_not_served(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = Tolerances(tolerance=1e-12, min_picture_psnr_db=50)
    monkeypatch.setitem(TOLERANCES, "fp32", strict)
    assert not export_tensorrt(bundle, "fp32", device="cpu", max_rows=1).passed
    with pytest.raises(BundleError, match="fp32 engines did not pass parity: encode"):
        usable_engines(bundle, read_manifest(bundle), "fp32", GPU)


def test_engines_of_another_gpu_or_version_are_kept_apart(
    engine_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "tiny"
    shutil.copytree(engine_bundle, directory)
    other = GPU.model_copy(update={"tensorrt": "10.16.1.11"})
    remedy = r"`rpiae export .*tiny --tensorrt --precision fp32` builds them anew, here"
    with pytest.raises(
        BundleError,
        match=r"engines are for NVIDIA H100 80GB HBM3 \(9\.0\) with TensorRT 10\.15\.1\.29, and "
        rf"this is .* 10\.16\.1\.11; {remedy}",
    ):
        usable_engines(directory, read_manifest(directory), "fp32", other)
    with pytest.raises(BundleError, match="it has no bf16 engines"):
        usable_engines(directory, read_manifest(directory), "bf16", GPU)
    install(monkeypatch, other)
    export_tensorrt(directory, "fp32", device="cpu", max_rows=1)
    manifest = read_manifest(directory)
    assert [engines.target for engines in manifest.engines] == [GPU, other]
    for target in (GPU, other):
        assert usable_engines(directory, manifest, "fp32", target).target == target


def test_engines_that_may_not_be_served(engine_bundle: Path, tmp_path: Path) -> None:
    directory = tmp_path / "tiny"
    shutil.copytree(engine_bundle, directory)
    manifest = read_manifest(directory)
    (engines,) = manifest.engines

    def changed(**fields: object) -> None:
        altered = manifest.model_copy(update={"engines": [engines.model_copy(update=fields)]})
        write_manifest(directory, altered)
        usable_engines(directory, read_manifest(directory), "fp32", GPU)

    with pytest.raises(BundleError, match="made from other weights"):
        changed(weights_sha256="0" * 64)
    with pytest.raises(BundleError, match="lack the graphs prefill_source, velocity"):
        changed(artifacts=engines.artifacts[:3])
    (directory / FOLDER / "decode.fp32.plan").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=rf"damaged: {FOLDER}/decode\.fp32\.plan differs"):
        changed()


def test_int8_is_not_for_tensorrt(bundle: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(bundle), "--tensorrt", "--precision", "int8"])
    assert result.exit_code == 2
    assert "take --precision fp16, bf16 or fp32" in result.output
    with pytest.raises(ExportError, match="int8 is onnxruntime's alone"):
        trtexec_lines(bundle, "int8")


def test_an_operator_that_it_has_not_is_found_before_anything_is_built(
    bundle: Path, tensorrt: RecordedTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        tensorrt_export, "unsupported", lambda path: [f"Pad of BOOL in {path.stem}"]
    )
    with pytest.raises(
        ExportError, match=r"would refuse the export: encode: Pad of BOOL in encode"
    ):
        export_tensorrt(bundle, "fp32", device="cpu")
    assert tensorrt.calls == []


def test_the_lines_for_trtexec_need_no_tensorrt(bundle: Path) -> None:
    assert "tensorrt" not in sys.modules
    result = CliRunner().invoke(
        app, ["export", str(bundle), "--tensorrt", "--print-trtexec", "--max-rows", "2"]
    )
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == len(GRAPHS)
    for name, line in zip(GRAPHS, lines, strict=True):
        assert line.startswith(f"trtexec --onnx={bundle}/onnx/fp32/{name}.onnx ")
        assert f"--saveEngine={name}.fp32.plan" in line


def test_the_command_has_the_defaults_of_what_it_calls() -> None:
    """It states them itself, so that its help needs no torch."""
    defaults = inspect.signature(export_command).parameters
    assert defaults["max_rows"].default == MAX_ROWS
    assert defaults["workspace_gib"].default == WORKSPACE_GIB


def test_the_command_without_tensorrt(bundle: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(bundle), "--tensorrt"])
    assert result.exit_code == 2
    assert "error: TensorRT is not installed: `pip install" in result.output
    assert "https://pypi.nvidia.com" in result.output


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("10.14.1.48", False), ("10.15.1.29", True), ("10.16.0.72", True), ("11.0.0.114", False)],
)
def test_versions(monkeypatch: pytest.MonkeyPatch, version: str, accepted: bool) -> None:
    target = EngineTarget(gpu="a", compute_capability="9.0", tensorrt=version)
    library = install(monkeypatch, target)
    if accepted:
        assert load_tensorrt() is library
        return
    with pytest.raises(BundleError, match=rf"TensorRT {version} is installed, .* at least 10\.15"):
        load_tensorrt()


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    message = "libnvonnxparser.so.10: cannot open shared object file"
    (tmp_path / "tensorrt.py").write_text(f"raise ImportError({message!r})\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BundleError, match=rf"TensorRT cannot be loaded \({message}\)"):
        load_tensorrt()


def test_a_machine_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="NVIDIA GPUs alone"):
        engine_target(RecordedTensorRT(GPU.tensorrt), torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BundleError, match="PyTorch sees none here"):
        engine_target(RecordedTensorRT(GPU.tensorrt), torch.device("cuda:0"))
