"""What TensorRT's parser takes: graphs of every kind of model stay inside its published table."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper

from export.graphs import graphs
from export.half_precision import halve_graph
from export.tensorrt_operators import unsupported
from models.bundle import load_bundle


def write(
    path: Path,
    nodes: Sequence[NodeProto],
    inputs: dict[str, tuple[int, list[int]]],
    output: tuple[int, list[int]],
    opset: int = 23,
) -> Path:
    values = [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()]
    graph = helper.make_graph(nodes, "graph", values, [helper.make_tensor_value_info("y", *output)])
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("node", "kind", "problem"),
    [
        (helper.make_node("Clip", ["x"], ["y"], "n"), TensorProto.INT64, "Clip of INT64 (n)"),
        (helper.make_node("Not", ["x"], ["y"], "n"), TensorProto.BOOL, None),
        (helper.make_node("Neg", ["x"], ["y"], "n"), TensorProto.BFLOAT16, None),
        (helper.make_node("Abs", ["x"], ["y"], "n"), TensorProto.FLOAT,
         "Abs is not among the operators (n)"),
        (helper.make_node("Neg", ["x"], ["y"], "n"), TensorProto.DOUBLE, "Neg of DOUBLE (n)"),
    ],
)  # fmt: skip
def test_operators_and_their_types(
    tmp_path: Path, node: NodeProto, kind: int, problem: str | None
) -> None:
    path = write(tmp_path / "a.onnx", [node], {"x": (kind, [2])}, (kind, [2]))
    assert unsupported(path) == ([] if problem is None else [problem])


def test_a_pad_of_booleans_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Pad", ["x", "pads"], ["y"], "n")
    inputs = {"x": (TensorProto.BOOL, [2]), "pads": (TensorProto.INT64, [2])}
    path = write(tmp_path / "a.onnx", [node], inputs, (TensorProto.BOOL, ["n"]))  # type: ignore[list-item]
    assert unsupported(path) == ["Pad of BOOL (n)"]


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({}, None),
        ({"softcap": 0.0, "is_causal": 0}, None),
        ({"softcap": 2.0}, "Attention with softcap (n)"),
        ({"softmax_precision": TensorProto.FLOAT}, "Attention with softmax_precision (n)"),
    ],
)
def test_attributes_of_attention(
    tmp_path: Path, attributes: dict[str, Any], problem: str | None
) -> None:
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], "n", **attributes)
    shape = [1, 2, 3, 4]
    inputs = {name: (int(TensorProto.FLOAT), shape) for name in "qkv"}
    path = write(tmp_path / "a.onnx", [node], inputs, (TensorProto.FLOAT, shape))
    assert unsupported(path) == ([] if problem is None else [problem])


def test_a_newer_opset_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Neg", ["x"], ["y"], "n")
    kind = (int(TensorProto.FLOAT), [2])
    path = write(tmp_path / "a.onnx", [node], {"x": kind}, kind, opset=25)
    assert unsupported(path) == ["opset 25 of ONNX, the newest is 24"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_exports_of_a_text_bundle(exported_bundle: Path, tmp_path: Path) -> None:
    check_folder(exported_bundle / "onnx" / "fp32", tmp_path)
    problems = unsupported(exported_bundle / "onnx" / "int8" / "decode.onnx")
    assert any("MatMulInteger is not among" in problem for problem in problems)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_exports_of_a_published_bundle(exported_class_bundle: Path, tmp_path: Path) -> None:
    check_folder(exported_class_bundle / "onnx" / "fp32", tmp_path)


def check_folder(folder: Path, scratch: Path) -> None:
    scratch.mkdir(exist_ok=True)
    paths = sorted(folder.glob("*.onnx"))
    assert len(paths) >= 4
    for path in paths:
        assert unsupported(path) == [], path.name
        for precision in ("fp16", "bf16"):
            half = scratch / f"{path.stem}.{precision}.onnx"
            halve_graph(path, half, precision)
            assert unsupported(half) == [], half.name


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_polygraphy_finds_nothing(exported_bundle: Path, tmp_path: Path, precision: str) -> None:
    """Its linter has no bf16, which NumPy has not."""
    path = exported_bundle / "onnx" / "fp32" / "velocity.onnx"
    if precision == "fp16":
        halve_graph(path, tmp_path / "half.onnx", "fp16")
        path = tmp_path / "half.onnx"
    program = str(Path(sys.executable).parent / "polygraphy")
    for command in (
        ["check", "lint", str(path)],
        ["surgeon", "sanitize", "--fold-constants", str(path), "-o", str(tmp_path / "a.onnx")],
    ):
        finished = subprocess.run([program, *command], capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stdout + finished.stderr
    assert unsupported(tmp_path / "a.onnx") == []


def test_the_stretch_of_a_picture_is_bicubic(exported_class_bundle: Path) -> None:
    """It is two products in a graph, for which bicubic interpolation has no operator."""
    bundle = load_bundle(exported_class_bundle)
    encode = next(graph for graph in graphs(bundle) if graph.name == "encode")
    (images,) = encode.sample(3, 0)
    assert images.shape[-1] != bundle.autoencoder.config.encoder.image_size
    with torch.inference_mode():
        mean, _ = encode.module(images)
        expected = bundle.autoencoder.encode(images).latent_dist.mean
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-4)
