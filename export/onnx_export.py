"""A bundle to ONNX: files, their proof, and the record of both in its manifest."""

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from export.graphs import Graph, graphs
from export.half_precision import halve_graph
from export.onnx_files import OPSET, graph_paths, write_graph
from export.parity import Tolerances, compare_graph, picture_psnr
from export.quantize import QUANTIZED, quantize_graph
from export.rounding import round_graph
from models.bundle import Bundle, load_bundle
from models.exports import EXPORT_FOLDER, proven_export, weights_digest
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
from models.onnx_model import OnnxModel, assemble, load_export
from models.onnx_session import GraphSession

TOLERANCES: dict[Precision, Tolerances] = {
    "fp32": Tolerances(tolerance=1e-4, min_picture_psnr_db=50),
    # Only what is broken is that far off: of random prompts and latents some keys are tiny before
    # they are normed. What the pictures are worth, their PSNR and prompts tell.
    "fp16": Tolerances(tolerance=0.1, min_picture_psnr_db=40),
    "bf16": Tolerances(tolerance=0.3, min_picture_psnr_db=25),
    "int8": Tolerances(tolerance=0.15, min_picture_psnr_db=20),
}
_TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime")
_ROUNDED_FOLDER = "rounded.partial"

Report = Callable[[str], None]


def export_onnx(directory: Path, precision: Precision, report: Report = lambda _: None) -> Export:
    """Write `directory`/onnx/<precision>, prove it, and record it in the manifest.

    The other precisions start from the fp32 export, which is made first where there is no usable
    one; int8 shares the graphs that stay as they are. onnxruntime has no bf16 on a CPU, so that one
    is proven with its values rounded to it (`export.rounding`), and is for TensorRT alone. The
    record is written whether it passed or not.

    Raises:
        BundleError: no bundle there, or it is incomplete or altered.
        ExportError: a graph cannot be exported.
    """
    bundle = load_bundle(directory)
    sources: dict[GraphName, Artifact] = {}
    if precision != "fp32":
        plain = _plain_export(directory, bundle, report)
        if not plain.passed:
            return plain
        sources = {artifact.graph: artifact for artifact in plain.artifacts}
    folder = directory / EXPORT_FOLDER / precision
    partial = _empty_folder(folder.with_name(f"{precision}.partial"))
    rounded = folder.with_name(_ROUNDED_FOLDER)
    if precision == "bf16":
        _empty_folder(rounded)
    parities = {}
    for graph in graphs(bundle):
        path = partial / f"{graph.name}.onnx"
        if precision == "fp32":
            write_graph(graph, path)
        elif not _change_graph(directory / sources[graph.name].files[0].path, path, precision):
            continue
        runs = path
        if precision == "bf16":
            runs = rounded / path.name
            round_graph(path, runs)
        parities[graph.name] = _prove(graph, path, runs, precision, report)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    artifacts = {
        **sources,
        **{name: _artifact(directory, folder, name, parity) for name, parity in parities.items()},
    }
    export = _record(directory, bundle, precision, list(artifacts.values()), report)
    shutil.rmtree(rounded, ignore_errors=True)
    return export


def _empty_folder(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _plain_export(directory: Path, bundle: Bundle, report: Report) -> Export:
    try:
        return proven_export(directory, bundle.manifest, "fp32")
    except BundleError as error:
        report(f"fp32 comes first: {error}")
        return export_onnx(directory, "fp32", report)


def _change_graph(source: Path, path: Path, precision: Precision) -> bool:
    """Write an fp32 graph in another precision; False if it stays as it is."""
    match precision:
        case "fp16" | "bf16":
            halve_graph(source, path, precision)
        case _ if source.stem in QUANTIZED:
            quantize_graph(source, path)
        case _:
            return False
    return True


def _prove(graph: Graph, path: Path, runs: Path, precision: Precision, report: Report) -> Parity:
    parity = compare_graph(graph, runs, TOLERANCES[precision].tolerance)
    size = sum(part.stat().st_size for part in graph_paths(path)) / 2**20
    report(
        f"{graph.name}, {precision}: {size:.1f} MiB, differs by {parity.max_error:.1e}, "
        f"{parity.tolerance:g} is allowed"
    )
    return parity


def _artifact(directory: Path, folder: Path, name: GraphName, parity: Parity) -> Artifact:
    paths = graph_paths(folder / f"{name}.onnx")
    files = list_files(directory, [path.relative_to(directory).as_posix() for path in paths])
    return Artifact(graph=name, files=files, parity=parity)


def _record(
    directory: Path,
    bundle: Bundle,
    precision: Precision,
    artifacts: list[Artifact],
    report: Report,
) -> Export:
    """Draw pictures with the artifacts, and write down how all that went."""
    export = Export(
        precision=precision,
        proven_by="onnxruntime-rounded" if precision == "bf16" else "onnxruntime",
        opset=OPSET,
        weights_sha256=weights_digest(bundle.manifest),
        made_with={tool: version(tool) for tool in _TOOLS},
        artifacts=artifacts,
        picture_psnr_db=None,
        min_picture_psnr_db=TOLERANCES[precision].min_picture_psnr_db,
    )
    psnr = picture_psnr(bundle, _load(directory, bundle, export))
    if psnr is not None:
        report(f"pictures, {precision}: {psnr:.1f} dB from PyTorch's, of the same seeds")
    export = export.model_copy(update={"picture_psnr_db": psnr})
    manifest = read_manifest(directory)
    others = [other for other in manifest.exports if other.precision != precision]
    if precision == "fp32":  # int8 shares its files: what was made from an earlier one goes with it
        others = [other for other in others if other.precision != "int8"]
        shutil.rmtree(directory / EXPORT_FOLDER / "int8", ignore_errors=True)
    write_manifest(directory, manifest.model_copy(update={"exports": [*others, export]}))
    return export


def _load(directory: Path, bundle: Bundle, export: Export) -> OnnxModel:
    """The export as onnxruntime runs it here."""
    threads = torch.get_num_threads()
    if export.proven_by == "onnxruntime":
        return load_export(directory, bundle.manifest, export, threads=threads)
    folder = directory / EXPORT_FOLDER / _ROUNDED_FOLDER
    sessions = {
        artifact.graph: GraphSession(folder / f"{artifact.graph}.onnx", threads=threads)
        for artifact in export.artifacts
    }
    return assemble(bundle.manifest, sessions, 0)
