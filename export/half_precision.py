"""fp16 and bf16: a float32 graph whose products, and all between them, have the smaller type.

The casts are in the graph, so a strongly typed runtime computes each value in the type that stands
there. Float32 stay: what comes before the first product or after the last one, which is the
sinusoids of the timestep and the normalisation of pixels and latents; norms; and the graph's
inputs and outputs, as samplers compute in float32. The softmax is inside Attention, whose kernels
sum in float32 by themselves; to demand it by the operator's attribute is what TensorRT refuses.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeAlias

import ml_dtypes
import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from export.onnx_files import inferred_values, save_graph

HalfPrecision: TypeAlias = Literal["fp16", "bf16"]

_TENSOR_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_ARRAY_TYPES = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
_LARGEST = {"fp16": 65504.0, "bf16": 3.38e38}
_PRODUCTS = {"Attention", "Conv", "Gemm", "MatMul"}
_KEPT = {
    "LayerNormalization",
    "RMSNormalization",
    # The type of these is an attribute's, not their inputs'.
    "Cast",
    "Constant",
    "ConstantOfShape",
}


def halve_graph(source: Path, path: Path, precision: HalfPrecision) -> None:
    """Write the float32 graph `source` as `path` in that precision."""
    model = onnx.load(source)
    types = {name: value.elem_type for name, value in inferred_values(source).items()}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    floats = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
    lowering = _Lowering(model.graph, floats, precision)
    for node in list(model.graph.node):
        lowering.add(node)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(lowering.nodes)
    model.graph.initializer.extend(lowering.weights.values())
    _drop_unused_weights(model.graph)
    save_graph(model, path)


def _between_products(nodes: Iterable[NodeProto]) -> set[str]:
    """Outputs of nodes that have a product at or before them, and one at or after them."""
    ordered = list(nodes)
    after: set[str] = set()
    for node in ordered:
        if node.op_type in _PRODUCTS or not after.isdisjoint(node.input):
            after.update(node.output)
    before: set[str] = set()
    for node in reversed(ordered):
        if node.op_type in _PRODUCTS or not before.isdisjoint(node.output):
            before.update(node.input)
    products = {name for node in ordered if node.op_type in _PRODUCTS for name in node.output}
    return (after & before) | products


class _Lowering:
    """Rewrites a graph node by node: `nodes` and `weights` are what it is made of afterwards."""

    def __init__(self, graph: GraphProto, floats: set[str], precision: HalfPrecision) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, TensorProto] = {}
        self._precision = precision
        self._floats = floats
        self._between = _between_products(graph.node)
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._outputs = {value.name for value in graph.output}
        self._low: dict[str, str] = {}  # float32 name -> name of it in the smaller type
        self._computed_low: set[str] = set()  # float32 names that exist only once cast back

    def add(self, node: NodeProto) -> None:
        """Append a node of the float32 graph, with the casts that it needs."""
        if not self._is_lowered(node):
            for index, name in enumerate(node.input):
                if name in self._computed_low:
                    node.input[index] = self._raised(name)
            self.nodes.append(node)
            return
        for index, name in enumerate(node.input):
            if name in self._floats:
                node.input[index] = self._lowered(name)
        made = [name for name in node.output if name in self._floats]
        for index, name in enumerate(node.output):
            if name in self._floats:
                node.output[index] = self._low[name] = f"{name}_{self._precision}"
        self._computed_low.update(made)
        self.nodes.append(node)
        for name in made:
            if name in self._outputs:
                self._raised(name)

    def _is_lowered(self, node: NodeProto) -> bool:
        if node.op_type in _KEPT or self._floats.isdisjoint((*node.input, *node.output)):
            return False
        # A table of embeddings comes before any product, and may be most of the weights.
        is_table = node.op_type == "Gather" and node.input[0] in self._initializers
        return is_table or not self._between.isdisjoint(node.output)

    def _lowered(self, name: str) -> str:
        if name not in self._low:
            low = self._low[name] = f"{name}_{self._precision}"
            if name in self._initializers:
                self.weights[low] = self._rounded(self._initializers[name], low)
            else:
                self._cast(name, low, _TENSOR_TYPES[self._precision])
        return self._low[name]

    def _rounded(self, tensor: TensorProto, name: str) -> TensorProto:
        # What is beyond the type's range, as a mask's -inf, becomes its end, not infinity.
        largest = _LARGEST[self._precision]
        values = np.clip(numpy_helper.to_array(tensor), -largest, largest)
        return numpy_helper.from_array(values.astype(_ARRAY_TYPES[self._precision]), name)

    def _raised(self, name: str) -> str:
        if name in self._computed_low:
            self._computed_low.remove(name)
            self._cast(self._low[name], name, TensorProto.FLOAT)
        return name

    def _cast(self, source: str, target: str, to: int) -> None:
        self.nodes.append(
            helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=to)
        )


def _drop_unused_weights(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
