"""A bundle's exports: which graphs one consists of, and whether it may be served.

Imports no torch, as `models.manifest`.
"""

import hashlib
from pathlib import Path

from models.manifest import (
    BundleError,
    BundleFile,
    Export,
    GraphName,
    Manifest,
    Precision,
    file_problems,
)

EXPORT_FOLDER = "onnx"


def graph_names(manifest: Manifest) -> tuple[GraphName, ...]:
    """The graphs that serve all of a bundle's tasks.

    A denoiser of classes needs no `prefill`: its context is a label.
    """
    names: list[GraphName] = ["encode", "decode"]
    if "denoiser" not in manifest.model:
        return tuple(names)
    if manifest.model["denoiser"].get("kind") == "class":
        names.append("velocity")
        if manifest.guidance == "autoguidance":
            names.append("guide_velocity")
    else:
        names += ["prefill", "prefill_source", "velocity"]
    return tuple(names)


def weights_digest(manifest: Manifest) -> str:
    """SHA-256 over those of the bundle's weights: what an export was made from."""
    lines = [f.sha256 for f in manifest.files if f.path.endswith(".safetensors")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def usable_export(directory: Path, manifest: Manifest, precision: Precision) -> Export:
    """The export of that precision, once it is known to be whole and proven in onnxruntime.

    Raises:
        BundleError: see `proven_export`; or it was proven for TensorRT alone.
    """
    export = proven_export(directory, manifest, precision)
    if export.proven_by != "onnxruntime":
        raise BundleError(
            f"bundle {directory}: onnxruntime on a CPU has no {precision}, so its {precision} "
            "export is for TensorRT's engines alone: take fp32 or fp16"
        )
    return export


def proven_export(directory: Path, manifest: Manifest, precision: Precision) -> Export:
    """The export of that precision, once it is known to be whole and proven by anything.

    Raises:
        BundleError: there is none, it is of other weights, it did not pass parity, or its files
            are missing or altered; the message says how to make it anew.
    """
    found = [export for export in manifest.exports if export.precision == precision]
    if not found:
        raise BundleError(_remedy(directory, precision, f"it has no {precision} export"))
    export = found[-1]
    if problem := _problem(directory, manifest, export):
        raise BundleError(_remedy(directory, precision, f"its {precision} export {problem}"))
    return export


def _problem(directory: Path, manifest: Manifest, export: Export) -> str | None:
    if export.weights_sha256 != weights_digest(manifest):
        return "was made from other weights"
    missing = set(graph_names(manifest)) - {artifact.graph for artifact in export.artifacts}
    if missing:
        return f"lacks the graphs {', '.join(sorted(missing))}"
    if not export.passed:
        return f"did not pass parity: {describe_parity(export)}"
    problems = file_problems(directory, export_files(export))
    return f"is damaged: {'; '.join(problems)}" if problems else None


def export_files(export: Export) -> list[BundleFile]:
    """All files of an export."""
    return [file for artifact in export.artifacts for file in artifact.files]


def describe_parity(export: Export) -> str:
    """Its differences from PyTorch in one line."""
    parts = [
        f"{artifact.graph} {artifact.parity.max_error:.1e} of {artifact.parity.tolerance:g}"
        for artifact in export.artifacts
    ]
    if export.picture_psnr_db is not None:
        parts.append(
            f"pictures {export.picture_psnr_db:.1f} dB, at least {export.min_picture_psnr_db:g}"
        )
    return ", ".join(parts)


def _remedy(directory: Path, precision: Precision, problem: str) -> str:
    command = f"rpiae export {directory} --onnx --precision {precision}"
    return f"bundle {directory}: {problem}; `{command}` makes it anew"
