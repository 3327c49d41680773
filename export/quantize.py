"""int8 for matrix products with weights: dynamic, with a scale for each token and output channel.

A scale for each token, unlike onnxruntime's own `quantize_dynamic`, which has one for the whole
tensor: there a picture would depend on those that share its batch. All operators are ONNX's own.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.onnx_files import save_graph
from models.manifest import GraphName

QUANTIZED: frozenset[GraphName] = frozenset({"decode", "velocity", "guide_velocity"})
"""The graphs that take nearly all of the time; encode and prefill run once for a request."""
_LARGEST = 127
_ZERO_POINT = 128  # unsigned activations times signed weights is what CPUs have instructions for
_TINY = 1e-12  # of a token that is all zero


def quantize_graph(source: Path, path: Path) -> int:
    """Write the graph `source` as `path` with int8 weights; how many products became int8.

    The first and the last one, which see latents and pixels, stay float32.
    """
    model = onnx.load(source)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if _has_weight(node, weights)]
    chosen = {id(node) for node in products[1:-1]}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if id(node) in chosen:
            name = node.input[1]
            values = numpy_helper.to_array(weights[name])
            model.graph.initializer.extend(_quantized_weight(name, values))
            nodes += _product(node)
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(_constants())
    used = {name for node in model.graph.node for name in node.input}
    for tensor in list(model.graph.initializer):
        if tensor.name not in used:
            model.graph.initializer.remove(tensor)
    save_graph(model, path)
    return len(chosen)


def _has_weight(node: NodeProto, weights: dict[str, TensorProto]) -> bool:
    if node.op_type != "MatMul" or node.input[1] not in weights:
        return False
    return len(weights[node.input[1]].dims) == 2


def _quantized_weight(name: str, values: NDArray[np.float32]) -> list[TensorProto]:
    """int8 weights (in, out) and a scale (out,) for each output channel."""
    scale = np.maximum(np.abs(values).max(axis=0), _TINY) / _LARGEST
    rounded = np.rint(values / scale).astype(np.int8)
    return [
        numpy_helper.from_array(rounded, f"{name}_int8"),
        numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"),
    ]


def _constants() -> list[TensorProto]:
    return [
        numpy_helper.from_array(np.array([-1], np.int64), "int8_axis"),
        numpy_helper.from_array(np.array(_TINY, np.float32), "int8_tiny"),
        numpy_helper.from_array(np.array(1 / _LARGEST, np.float32), "int8_step"),
        numpy_helper.from_array(np.array(1, np.float32), "int8_one"),
        numpy_helper.from_array(np.array(_ZERO_POINT, np.uint8), "int8_zero"),
    ]


def _product(node: NodeProto) -> list[NodeProto]:
    """x @ weight as (x / scale of its token, rounded) @ int8 weight * both scales."""
    (x, weight), (out,), at = node.input, node.output, node.name

    def make(op: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(op, inputs, [output], name=f"{at}_{output}", **attributes)

    def own(part: str) -> str:
        return f"{out}_{part}"

    return [
        make("Abs", [x], own("abs")),
        make("ReduceMax", [own("abs"), "int8_axis"], own("max"), keepdims=1),
        make("Max", [own("max"), "int8_tiny"], own("range")),
        make("Mul", [own("range"), "int8_step"], own("step")),
        make("Div", [x, own("step")], own("scaled")),
        make("QuantizeLinear", [own("scaled"), "int8_one", "int8_zero"], own("uint8")),
        make("MatMulInteger", [own("uint8"), f"{weight}_int8", "int8_zero"], own("int32")),
        make("Cast", [own("int32")], own("float"), to=TensorProto.FLOAT),
        make("Mul", [own("float"), f"{weight}_scale"], own("unscaled")),
        make("Mul", [own("unscaled"), own("step")], out),
    ]
