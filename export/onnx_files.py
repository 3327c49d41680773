"""A graph as an ONNX file: traced or changed, written and checked."""

import logging
import warnings
from pathlib import Path

import onnx
import torch
from onnx import ModelProto, TypeProto
from onnx.checker import check_model
from onnx.shape_inference import infer_shapes_path
from torch.export import Dim

from export.graphs import Graph

OPSET = 23
"""Has RMSNormalization and Attention, which onnxruntime runs faster than their parts."""
_DOMAINS = {"", "ai.onnx"}
# A file of protocol buffers holds 2 GB at most; larger weights go into a file beside it.
_MAX_INSIDE_BYTES = 2**30
_SAMPLE_ROWS = 3


class ExportError(ValueError):
    """A graph cannot be exported as it should be."""


def write_graph(graph: Graph, path: Path, *, max_inside_bytes: int = _MAX_INSIDE_BYTES) -> None:
    """Write the graph as `path`, with weights above `max_inside_bytes` in `<path>.data`.

    Raises:
        ExportError: the file has other names or fixed axes, operators beyond ONNX's own, or does
            not stand ONNX's checker or strict shape inference.
    """
    num_bytes = sum(parameter.nbytes for parameter in graph.module.parameters())
    # Neither 1 nor as many as anything else: the exporter would take it for a constant.
    sample = graph.sample(_SAMPLE_ROWS, max(1, graph.max_length - 2))
    dims = {
        axis.name: Dim(axis.name, min=axis.smallest, max=axis.largest)
        for axes in graph.axes.values()
        for axis in axes.values()
    }
    shapes = tuple(
        {index: dims[axis.name] for index, axis in graph.axes[name].items()}
        for name in graph.inputs
    )
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        registration.setLevel(logging.ERROR)  # torchvision, which is not installed on purpose
        try:
            torch.onnx.export(
                graph.module,
                sample,
                path,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                dynamic_shapes=shapes,
                opset_version=OPSET,
                external_data=num_bytes > max_inside_bytes,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"{graph.name} cannot be exported: {error}") from error
        finally:
            registration.setLevel(level)
    _check(graph, path)


def save_graph(model: ModelProto, path: Path) -> None:
    """Write a changed graph, large weights in `<path>.data`.

    Raises:
        ExportError: it does not stand ONNX's checker or strict shape inference.
    """
    num_bytes = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(
        model,
        path,
        save_as_external_data=num_bytes > _MAX_INSIDE_BYTES,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
    )
    _check_valid(path)


def inferred_values(path: Path) -> dict[str, TypeProto.Tensor]:
    """Type and shape of every tensor of a graph but its weights, however large the file is."""
    with_types = path.with_name(path.name + ".types")
    infer_shapes_path(path, with_types, check_type=True, strict_mode=True)
    graph = onnx.load(with_types, load_external_data=False).graph
    with_types.unlink()
    values = (*graph.value_info, *graph.input, *graph.output)
    return {value.name: value.type.tensor_type for value in values}


def graph_paths(path: Path) -> list[Path]:
    """The files of a graph that was written as `path`."""
    data = path.with_name(path.name + ".data")
    return [path, data] if data.exists() else [path]


def _check_valid(path: Path) -> None:
    try:
        check_model(path, full_check=True)
        with_shapes = path.with_name(path.name + ".shapes")
        infer_shapes_path(path, with_shapes, check_type=True, strict_mode=True)
        with_shapes.unlink()
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{path.stem}: the exported file is not valid: {error}") from error


def _check(graph: Graph, path: Path) -> None:
    _check_valid(path)
    model = onnx.load(path, load_external_data=False)
    foreign = {node.op_type for node in model.graph.node if node.domain not in _DOMAINS}
    if foreign or model.functions:
        raise ExportError(f"{graph.name}: operators beyond ONNX's own: {sorted(foreign)}")
    expected = {
        name: {index: axis.name for index, axis in graph.axes[name].items()}
        for name in graph.inputs
    }
    found = {
        value.name: {
            index: dim.dim_param
            for index, dim in enumerate(value.type.tensor_type.shape.dim)
            if dim.dim_param
        }
        for value in model.graph.input
    }
    if found != expected:
        raise ExportError(f"{graph.name}: dynamic axes {found}, expected {expected}")
    names = tuple(value.name for value in model.graph.output)
    if names != graph.outputs:
        raise ExportError(f"{graph.name}: outputs {names}, expected {graph.outputs}")
