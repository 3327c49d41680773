"""Which operators and types TensorRT's ONNX parser takes, checked without TensorRT.

Source: https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md as of TensorRT 10.15, of
which this holds the operators that exported graphs consist of; and onnxOpCheckers.cpp beside it for
what it refuses of Attention.
"""

from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

from export.onnx_files import inferred_values

NEWEST_OPSET = 24
_FLOATS: set[int] = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}
_NUMBERS: set[int] = _FLOATS | {TensorProto.INT32, TensorProto.INT64}
_ALL: set[int] = _NUMBERS | {TensorProto.BOOL}
_BOOLS: set[int] = {TensorProto.BOOL}

OPERATORS: dict[str, set[int]] = {
    **dict.fromkeys(
        ("Attention", "Clip", "Conv", "Cos", "Erf", "Exp", "Gemm", "LayerNormalization", "MatMul",
         "RMSNormalization", "Reciprocal", "Sigmoid", "Sin", "Softmax", "Sqrt", "Tanh"),
        _FLOATS,
    ),
    **dict.fromkeys(
        ("Add", "Div", "Equal", "Gelu", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max",
         "Min", "Mul", "Neg", "Pad", "Pow", "Range", "ReduceMax", "ReduceMean", "ReduceSum", "Sub",
         "TopK"),
        _NUMBERS,
    ),
    **dict.fromkeys(("And", "Not", "Or"), _BOOLS),
    **dict.fromkeys(
        ("Cast", "Concat", "ConstantOfShape", "Expand", "Gather", "GatherElements",
         "Identity", "Reshape", "Shape",
         "Slice", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where"),
        _ALL,
    ),
}  # fmt: skip
"""Operator -> the types of its data; indices, shapes and masks have types of their own."""
_DATA_INPUT = {"Where": 1}  # beside the others' first
_ATTENTION_INPUTS = 4  # query, key, value, mask


def unsupported(path: Path) -> list[str]:
    """What TensorRT would refuse of a graph's file, each in a few words; empty if nothing."""
    model = onnx.load(path, load_external_data=False)
    values = inferred_values(path)
    types = {name: value.elem_type for name, value in values.items()}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    problems = [
        f"opset {entry.version} of {entry.domain or 'ONNX'}, the newest is {NEWEST_OPSET}"
        for entry in model.opset_import
        if entry.domain or entry.version > NEWEST_OPSET
    ]
    for node in model.graph.node:
        problems += [f"{node.op_type} {problem} ({node.name})" for problem in _refused(node, types)]
    return problems


def _refused(node: NodeProto, types: dict[str, int]) -> list[str]:
    if node.domain or node.op_type not in OPERATORS:
        return ["is not among the operators"]
    data = node.output[0]
    if node.op_type != "ConstantOfShape":
        data = node.input[_DATA_INPUT.get(node.op_type, 0)]
    checked = [types[data]]
    if node.op_type == "Cast":
        checked.append(types[node.output[0]])
    problems = [
        f"of {TensorProto.DataType.Name(kind)}"
        for kind in checked
        if kind not in OPERATORS[node.op_type]
    ]
    if len(node.output) > 1 and node.op_type in {"Attention", "LayerNormalization"}:
        problems.append("with more than one output")
    if node.op_type == "Attention":
        problems += _refused_attention(node)
    if node.op_type == "TopK" and any(a.name == "sorted" and not a.i for a in node.attribute):
        problems.append("without an order")
    return problems


def _refused_attention(node: NodeProto) -> list[str]:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    problems = []
    if len(node.input) > _ATTENTION_INPUTS:
        problems.append("with past keys or values")
    if "softmax_precision" in attributes:
        problems.append("with softmax_precision")
    problems += [
        f"with {name}" for name in ("softcap", "qk_matmul_output_mode") if attributes.get(name)
    ]
    return problems
