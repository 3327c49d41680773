"""Which of onnxruntime's execution providers run a graph, with which options.

CUDA's and TensorRT's follow their documentation; neither has run on a GPU yet.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import onnxruntime
import torch

from models.manifest import BundleError
from models.onnx_model import TensorRTOptions

Providers: TypeAlias = list[tuple[str, dict[str, str]]]

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
_ROWS = "rows"  # the axis that every input has


def providers_for(
    path: Path, device: torch.device, tensorrt: TensorRTOptions | None = None
) -> Providers:
    """What to load a graph with: the first is to run it.

    Raises:
        BundleError: this onnxruntime lacks it, or the graph cannot be read.
    """
    if device.type == "cpu" and tensorrt is None:
        return [(CPU, {})]
    first = CUDA if tensorrt is None else TENSORRT
    # Without a GPU that works, onnxruntime goes on with the CPU instead.
    if first not in onnxruntime.get_available_providers():
        raise BundleError(f"this onnxruntime has no {first}: install onnxruntime-gpu")
    index = str(device.index or 0)
    # fp32 means fp32; and a batch of a new size is not worth an exhaustive search.
    cuda = {"device_id": index, "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
    if tensorrt is None:
        return [(CUDA, cuda)]
    options = {"device_id": index, **_tensorrt_options(tensorrt, _axes_of(path))}
    return [(TENSORRT, options), (CUDA, cuda)]


def _tensorrt_options(
    options: TensorRTOptions, axes: Mapping[str, Sequence[int | str]]
) -> dict[str, str]:
    """Options with one profile for all batches, so that nothing is built while jobs wait.

    axes: input -> its shape, with the names of dynamic axes.
    """
    named = {
        "trt_fp16_enable": str(int(options.precision == "fp16")),
        "trt_bf16_enable": str(int(options.precision == "bf16")),
        "trt_profile_min_shapes": _shapes(axes, lambda _: 1),
        "trt_profile_opt_shapes": _shapes(axes, lambda axis: max(1, _most(options, axis) // 4)),
        "trt_profile_max_shapes": _shapes(axes, lambda axis: _most(options, axis)),
    }
    if options.cache is not None:
        for kind in ("engine", "timing"):
            named[f"trt_{kind}_cache_enable"] = "1"
            named[f"trt_{kind}_cache_path"] = str(options.cache)
    return named


def _most(options: TensorRTOptions, axis: str) -> int:
    if axis == _ROWS:
        return options.max_rows
    try:
        return options.lengths[axis]
    except KeyError:
        raise BundleError(f"the graph has an unknown axis {axis}: export the bundle anew") from None


def _shapes(axes: Mapping[str, Sequence[int | str]], size: Any) -> str:
    """As the provider reads them: name:2x3,other:4."""
    written = {
        name: "x".join(str(size(axis) if isinstance(axis, str) else axis) for axis in shape)
        for name, shape in axes.items()
    }
    return ",".join(f"{name}:{shape}" for name, shape in written.items())


def _axes_of(path: Path) -> dict[str, list[int | str]]:
    """The inputs of a graph, read without making it fast."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[CPU])
    except Exception as error:  # its exceptions share no other base
        raise BundleError(f"onnxruntime cannot load {path}: {error}") from error
    return {given.name: given.shape for given in session.get_inputs()}
