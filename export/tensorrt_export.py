"""A bundle to TensorRT engines: files for this GPU, their proof, and the record of both.

It has not run on a GPU yet: see `models.tensorrt_library`.
"""

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from export.graphs import Graph, graphs
from export.onnx_export import TOLERANCES, Report, export_onnx
from export.onnx_files import ExportError
from export.parity import compare_session, picture_psnr
from export.tensorrt_build import build_engine
from export.tensorrt_operators import unsupported
from export.tensorrt_profiles import MAX_ROWS, profiles, trtexec_command
from models.bundle import Bundle, load_bundle
from models.engines import plan_name, target_folder
from models.exports import proven_export
from models.manifest import (
    Artifact,
    BundleError,
    Export,
    GraphName,
    Parity,
    Precision,
    list_files,
    read_manifest,
    write_manifest,
)
from models.onnx_model import assemble
from models.tensorrt_library import engine_target, load_tensorrt
from models.tensorrt_session import EngineSession, load_engine

WORKSPACE_GIB = 8.0
_TIMING_CACHE = "timing.cache"


def export_tensorrt(
    directory: Path,
    precision: Precision,
    report: Report = lambda _: None,
    *,
    device: str = "cuda:0",
    max_rows: int = MAX_ROWS,
    workspace_gib: float = WORKSPACE_GIB,
) -> Export:
    """Build engines of the ONNX export, which is made first where there is none.

    Args:
        device: the GPU that they are built on and for.
        max_rows: of the largest batch that steps together.
        workspace_gib: GPU memory that a kernel may use beside its tensors.

    Raises:
        BundleError: no bundle there, or it is incomplete or altered; no TensorRT or no GPU.
        ExportError: a graph cannot be exported, or no engine can be built of it.
    """
    library = load_tensorrt()
    where = torch.device(device)
    target = engine_target(library, where)
    onnx = onnx_for_tensorrt(directory, precision, report)
    bundle = load_bundle(directory).to(device)
    folder = directory / target_folder(target)
    folder.mkdir(parents=True, exist_ok=True)
    sessions: dict[GraphName, EngineSession] = {}
    artifacts = []
    for graph, source in _sources(directory, bundle, onnx):
        plan = folder / plan_name(graph.name, precision)
        report(f"{graph.name}, {precision}: building")
        engine = build_engine(
            library,
            source,
            profiles(graph, max_rows),
            precision=precision,
            workspace_bytes=int(workspace_gib * 2**30),
            timing_cache=folder / _TIMING_CACHE,
        )
        partial = plan.with_suffix(".partial")
        partial.write_bytes(engine)
        partial.replace(plan)
        session = load_engine(library, plan, bundle.manifest, device=where)
        sessions[graph.name] = session
        parity = _prove(graph, session, precision, report)
        files = list_files(directory, [plan.relative_to(directory).as_posix()])
        artifacts.append(Artifact(graph=graph.name, files=files, parity=parity))
    psnr = picture_psnr(bundle, assemble(bundle.manifest, sessions, 0))
    engines = Export(
        runtime="tensorrt",
        target=target,
        precision=precision,
        proven_by="tensorrt",
        opset=onnx.opset,
        weights_sha256=onnx.weights_sha256,
        made_with=_made_with(library),
        artifacts=artifacts,
        picture_psnr_db=psnr,
        min_picture_psnr_db=TOLERANCES[precision].min_picture_psnr_db,
    )
    if psnr is not None:
        report(f"pictures, {precision}: {psnr:.1f} dB from PyTorch's, of the same seeds")
    _record(directory, engines)
    return engines


def trtexec_lines(
    directory: Path,
    precision: Precision,
    report: Report = lambda _: None,
    *,
    max_rows: int = MAX_ROWS,
    workspace_gib: float = WORKSPACE_GIB,
) -> list[str]:
    """The commands of NVIDIA's `trtexec` that build the same engines; needs no TensorRT here.

    Engines that it builds are not served, as they have no record: it is for measuring and mending.

    Raises:
        BundleError, ExportError: see `export_tensorrt`.
    """
    onnx = onnx_for_tensorrt(directory, precision, report)
    return [
        trtexec_command(
            source,
            Path(plan_name(graph.name, precision)),
            profiles(graph, max_rows),
            precision=precision,
            workspace_bytes=int(workspace_gib * 2**30),
            timing_cache=Path(_TIMING_CACHE),
        )
        for graph, source in _sources(directory, load_bundle(directory), onnx)
    ]


def onnx_for_tensorrt(directory: Path, precision: Precision, report: Report) -> Export:
    """The bundle's ONNX export of that precision, made if need be, once TensorRT should read it.

    Raises:
        BundleError: no bundle there, it is incomplete or altered, or its export did not pass.
        ExportError: a graph cannot be exported, or TensorRT would refuse an operator of it.
    """
    if precision == "int8":
        raise ExportError("int8 is onnxruntime's alone: take --precision fp16, bf16 or fp32")
    try:
        onnx = proven_export(directory, read_manifest(directory), precision)
    except BundleError as error:
        report(f"ONNX comes first: {error}")
        export_onnx(directory, precision, report)
        onnx = proven_export(directory, read_manifest(directory), precision)
    problems = [
        f"{artifact.graph}: {problem}"
        for artifact in onnx.artifacts
        for problem in unsupported(directory / artifact.files[0].path)
    ]
    if problems:
        raise ExportError(f"TensorRT would refuse the export: {'; '.join(problems)}")
    return onnx


def _sources(directory: Path, bundle: Bundle, onnx: Export) -> Iterator[tuple[Graph, Path]]:
    paths = {artifact.graph: directory / artifact.files[0].path for artifact in onnx.artifacts}
    for graph in graphs(bundle):
        yield graph, paths[graph.name]


def _prove(graph: Graph, session: EngineSession, precision: Precision, report: Report) -> Parity:
    parity = compare_session(graph, session, TOLERANCES[precision].tolerance)
    report(
        f"{graph.name}, {precision}: for {', '.join(map(str, session.rows))} rows, differs by "
        f"{parity.max_error:.1e}, {parity.tolerance:g} is allowed"
    )
    return parity


def _record(directory: Path, engines: Export) -> None:
    """Write the record in the place of that of the same precision, GPU and version."""
    manifest = read_manifest(directory)
    others = [
        other
        for other in manifest.engines
        if other.precision != engines.precision or other.target != engines.target
    ]
    write_manifest(directory, manifest.model_copy(update={"engines": [*others, engines]}))


def _made_with(library: Any) -> dict[str, str]:
    """Versions that an engine depends on, or that help to understand one."""
    found = {
        "tensorrt": library.__version__,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "onnx": version("onnx"),
        "driver": _driver_version(),
    }
    return {name: text for name, text in found.items() if text is not None}


def _driver_version() -> str | None:
    if find_spec("pynvml") is None:
        return None
    nvml: Any = import_module("pynvml")  # without types
    try:
        nvml.nvmlInit()
        return str(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError:
        return None
