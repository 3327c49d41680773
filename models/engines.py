"""A bundle's TensorRT engines: where they lie, and which of them run on a GPU.

Imports neither torch nor tensorrt.
"""

import re
from pathlib import Path

from models.exports import describe_parity, export_files, graph_names, weights_digest
from models.manifest import (
    BundleError,
    EngineTarget,
    Export,
    GraphName,
    Manifest,
    Precision,
    file_problems,
)

ENGINE_FOLDER = "engines"


def target_folder(target: EngineTarget) -> str:
    """Path inside a bundle of the engines of that GPU and version: no other ones share it."""
    gpu = re.sub(r"[^a-z0-9]+", "-", target.gpu.lower()).strip("-")
    return f"{ENGINE_FOLDER}/{gpu}-{target.compute_capability}-{target.tensorrt}"


def plan_name(graph: GraphName, precision: Precision) -> str:
    """File name of a graph's engine."""
    return f"{graph}.{precision}.plan"


def describe_target(target: EngineTarget) -> str:
    """The GPU and the version in words."""
    return f"{target.gpu} ({target.compute_capability}) with TensorRT {target.tensorrt}"


def find_engines(manifest: Manifest, precision: Precision, target: EngineTarget) -> Export | None:
    """The record of the engines of that precision for that GPU and version; not checked."""
    found = [
        engines
        for engines in manifest.engines
        if engines.precision == precision and engines.target == target
    ]
    return found[-1] if found else None


def usable_engines(
    directory: Path, manifest: Manifest, precision: Precision, target: EngineTarget
) -> Export:
    """The engines of that precision, once they are known to be whole, proven and of this GPU.

    Raises:
        BundleError: there are none, or only those of another GPU or version; they are of other
            weights, did not pass parity, or are missing or altered. The message says how to build
            them anew.
    """
    engines = find_engines(manifest, precision, target)
    problem = (
        _absence(manifest, precision, target)
        if engines is None
        else _problem(directory, manifest, engines)
    )
    if engines is None or problem is not None:
        command = f"rpiae export {directory} --tensorrt --precision {precision}"
        raise BundleError(f"bundle {directory}: {problem}; `{command}` builds them anew, here")
    return engines


def _absence(manifest: Manifest, precision: Precision, target: EngineTarget) -> str:
    others = [e.target for e in manifest.engines if e.precision == precision and e.target]
    if not others:
        return f"it has no {precision} engines"
    of = ", ".join(describe_target(other) for other in others)
    return f"its {precision} engines are for {of}, and this is {describe_target(target)}"


def _problem(directory: Path, manifest: Manifest, engines: Export) -> str | None:
    name = f"its {engines.precision} engines"
    if engines.weights_sha256 != weights_digest(manifest):
        return f"{name} were made from other weights"
    missing = set(graph_names(manifest)) - {artifact.graph for artifact in engines.artifacts}
    if missing:
        return f"{name} lack the graphs {', '.join(sorted(missing))}"
    if not engines.passed:
        return f"{name} did not pass parity: {describe_parity(engines)}"
    problems = file_problems(directory, export_files(engines))
    return f"{name} are damaged: {'; '.join(problems)}" if problems else None
