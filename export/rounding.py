"""A graph of a smaller type in float32 arithmetic, to run it where that type has no kernels.

Every weight is the rounded one, and every value is rounded as soon as it is computed: to the order
of the sums inside an operator this is what hardware gives that adds up in float32.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from export.onnx_files import inferred_values, save_graph

_LOW_TYPES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}


def round_graph(source: Path, path: Path) -> None:
    """Write a graph of `export.half_precision` as `path`, in float32 with rounded values."""
    model = onnx.load(source)
    graph = model.graph
    kinds = {name: value.elem_type for name, value in inferred_values(source).items()}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    types = {name: kind for name, kind in kinds.items() if kind in _LOW_TYPES}
    for tensor in graph.initializer:
        if tensor.name in types:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes = [part for node in graph.node for part in _rounded(node, types)]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    save_graph(model, path)


def _rounded(node: NodeProto, types: dict[str, int]) -> list[NodeProto]:
    """The node in float32, and the rounding of what it computes."""
    if node.op_type == "Cast" and node.input[0] in types:
        node.op_type = "Identity"  # back to float32, where everything already is
        del node.attribute[:]
        return [node]
    if node.op_type == "Cast" and node.output[0] in types:
        return _rounding(node.input[0], node.output[0], types[node.output[0]])
    parts = [node]
    for index, name in enumerate(node.output):
        if name in types:
            node.output[index] = f"{name}_exact"
            parts += _rounding(f"{name}_exact", name, types[name])
    return parts


def _rounding(source: str, target: str, kind: int) -> list[NodeProto]:
    small = f"{target}_small"
    return [
        helper.make_node("Cast", [source], [small], name=f"round_{target}", to=kind),
        helper.make_node("Cast", [small], [target], name=f"widen_{target}", to=TensorProto.FLOAT),
    ]
