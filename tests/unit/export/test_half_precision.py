"""fp16 and bf16 graphs: which values are small, how they round, what the record says of them."""

import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from export import onnx_files
from export.half_precision import HalfPrecision, halve_graph
from export.onnx_export import export_onnx
from export.onnx_files import graph_paths, inferred_values
from export.rounding import round_graph
from models.exports import proven_export, usable_export
from models.manifest import BundleError, read_manifest
from models.onnx_session import GraphSession
from service.backends.onnx_backend import OnnxBackend
from service.backends.torch_backend import TorchBackend

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # the fixtures export bundles

TYPES: dict[HalfPrecision, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
PRODUCTS = {"Attention", "Conv", "Gemm", "MatMul"}
NORMS = {"LayerNormalization", "RMSNormalization"}


@pytest.fixture(scope="module")
def half_bundle(exported_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the exported tiny bundle with fp16 and bf16: read it, do not write into it."""
    directory = tmp_path_factory.mktemp("half") / "tiny"
    shutil.copytree(exported_bundle, directory)
    export_onnx(directory, "fp16")
    export_onnx(directory, "bf16")
    return directory


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["encode", "decode", "prefill_source", "velocity"])
def test_products_are_small_and_norms_are_not(
    half_bundle: Path, name: str, precision: HalfPrecision
) -> None:
    path = half_bundle / "onnx" / precision / f"{name}.onnx"
    model = onnx.load(path)
    types = {key: value.elem_type for key, value in inferred_values(path).items()}
    small = TYPES[precision]
    for node in model.graph.node:
        if node.op_type in PRODUCTS:
            assert types[node.output[0]] == small, node.name
        if node.op_type in NORMS | {"Cos", "Sin"}:
            assert types[node.output[0]] == TensorProto.FLOAT, node.name
    weights = {t.name: t for t in model.graph.initializer}
    matrices = [n.input[1] for n in model.graph.node if n.op_type == "MatMul"]
    assert {weights[m].data_type for m in matrices if m in weights} == {small}
    ends = (*model.graph.input, *model.graph.output)
    assert small not in {value.type.tensor_type.elem_type for value in ends}


def test_a_table_of_embeddings_is_halved(half_bundle: Path) -> None:
    model = onnx.load(half_bundle / "onnx" / "fp16" / "prefill.onnx")
    (table,) = [t for t in model.graph.initializer if "words.weight" in t.name]
    assert table.data_type == TensorProto.FLOAT16


def test_weights_take_half_the_room(half_bundle: Path) -> None:
    def weight_bytes(precision: str) -> int:
        paths = (half_bundle / "onnx" / precision).glob("*.onnx")
        tensors = (tensor for path in paths for tensor in onnx.load(path).graph.initializer)
        return sum(len(tensor.raw_data) for tensor in tensors)

    for precision in ("fp16", "bf16"):
        assert weight_bytes(precision) < 0.6 * weight_bytes("fp32")


def chain(path: Path, weights: np.ndarray) -> None:
    """A graph of two products with a sum and a norm between them."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Add", ["a", "b"], ["c"], name="sum"),
        helper.make_node("RMSNormalization", ["c", "s"], ["d"], name="norm"),
        helper.make_node("MatMul", ["d", "w"], ["e"], name="last"),
        helper.make_node("Mul", ["e", "b"], ["y"], name="after"),
    ]
    width = len(weights)
    ones = np.linspace(0.5, 2, width, dtype=np.float32)
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", width])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(ones, "b"),
            numpy_helper.from_array(ones, "s"),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path
    )


@pytest.mark.parametrize(("precision", "bits"), [("fp16", 11), ("bf16", 8)])
def test_rounding_computes_what_the_reference_does(
    tmp_path: Path, precision: HalfPrecision, bits: int
) -> None:
    generator = np.random.default_rng(1)
    chain(tmp_path / "plain.onnx", generator.normal(size=(16, 16)).astype(np.float32))
    halve_graph(tmp_path / "plain.onnx", tmp_path / "half.onnx", precision)
    round_graph(tmp_path / "half.onnx", tmp_path / "rounded.onnx")
    x = generator.normal(size=(64, 16)).astype(np.float32)
    (plain,) = ReferenceEvaluator(str(tmp_path / "plain.onnx")).run(None, {"x": x})
    (expected,) = ReferenceEvaluator(str(tmp_path / "half.onnx")).run(None, {"x": x})
    session = GraphSession(tmp_path / "rounded.onnx")
    (found,) = session.run({"x": torch.from_numpy(x)}, (x.shape,))
    scale = np.abs(plain).max()
    unit = 2.0**-bits
    # It rounds at all, as much as the type does, and as the reference does but for the sums.
    assert unit / 4 < np.abs(found.numpy() - plain).max() / scale < 8 * unit
    assert np.abs(found.numpy() - expected).mean() < np.abs(found.numpy() - plain).mean()


def test_weights_beyond_the_range_become_its_end(tmp_path: Path) -> None:
    weights = np.full((4, 4), 1e6, np.float32)
    weights[0, 0] = -np.inf
    chain(tmp_path / "plain.onnx", weights)
    halve_graph(tmp_path / "plain.onnx", tmp_path / "half.onnx", "fp16")
    tensors = {t.name: t for t in onnx.load(tmp_path / "half.onnx").graph.initializer}
    halved = numpy_helper.to_array(tensors["w_fp16"])
    assert halved.min() == -65504
    assert halved.max() == 65504


def test_large_weights_lie_beside_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.random.default_rng(3).normal(size=(64, 64)).astype(np.float32)
    chain(tmp_path / "plain.onnx", weights)
    monkeypatch.setattr(onnx_files, "_MAX_INSIDE_BYTES", 0)
    halve_graph(tmp_path / "plain.onnx", tmp_path / "half.onnx", "bf16")
    round_graph(tmp_path / "half.onnx", tmp_path / "rounded.onnx")
    sizes = {}
    for name in ("half", "rounded"):
        graph, data = graph_paths(tmp_path / f"{name}.onnx")
        assert graph.stat().st_size < 4096
        sizes[name] = data.stat().st_size
    assert sizes["half"] < 0.6 * sizes["rounded"]
    x = torch.eye(64)
    (y,) = GraphSession(tmp_path / "rounded.onnx").run({"x": x}, (x.shape,))
    assert y.abs().max() > 0


def test_bf16_is_the_type_of_that_name(tmp_path: Path) -> None:
    weights = np.random.default_rng(2).normal(size=(8, 8)).astype(np.float32)
    chain(tmp_path / "plain.onnx", weights)
    halve_graph(tmp_path / "plain.onnx", tmp_path / "half.onnx", "bf16")
    tensors = {t.name: t for t in onnx.load(tmp_path / "half.onnx").graph.initializer}
    halved = numpy_helper.to_array(tensors["w_bf16"])
    assert np.array_equal(halved, weights.astype(ml_dtypes.bfloat16))


def test_the_records_say_what_proved_them(half_bundle: Path) -> None:
    manifest = read_manifest(half_bundle)
    by_name = {export.precision: export for export in manifest.exports}
    assert list(by_name) == ["fp32", "int8", "fp16", "bf16"]
    fp16, bf16 = by_name["fp16"], by_name["bf16"]
    assert (fp16.proven_by, bf16.proven_by) == ("onnxruntime", "onnxruntime-rounded")
    for export in (fp16, bf16):
        assert export.passed
        assert export.picture_psnr_db is not None
        assert export.min_picture_psnr_db <= export.picture_psnr_db < 100
        assert export.opset == 23
        assert all(artifact.parity.batches == [1, 3, 16] for artifact in export.artifacts)
    assert fp16.picture_psnr_db is not None
    assert bf16.picture_psnr_db is not None
    assert bf16.picture_psnr_db < fp16.picture_psnr_db  # it rounded to the coarser type
    folders = sorted(path.name for path in (half_bundle / "onnx").iterdir())
    assert folders == ["bf16", "fp16", "fp32", "int8"]


def test_bf16_is_not_for_onnxruntime(half_bundle: Path) -> None:
    manifest = read_manifest(half_bundle)
    assert proven_export(half_bundle, manifest, "bf16").passed
    with pytest.raises(BundleError, match=r"no bf16, .* TensorRT's engines alone: take fp32 or"):
        usable_export(half_bundle, manifest, "bf16")


def test_fp16_is_served_and_named(half_bundle: Path) -> None:
    manifest = read_manifest(half_bundle)
    ours = OnnxBackend.load(half_bundle, manifest, precision="fp16")
    torch_one = TorchBackend.load(half_bundle)
    assert ours.name == "onnxruntime-fp16"
    latents = torch.randn(2, 8, 4, 4)
    difference = (ours.decode(latents) - torch_one.decode(latents)).abs().max()
    assert 0 < difference < 0.02


def test_a_new_fp32_export_leaves_fp16_be(half_bundle: Path, tmp_path: Path) -> None:
    """It shares no file with it; of other weights its digest tells."""
    directory = tmp_path / "tiny"
    shutil.copytree(half_bundle, directory)
    before = usable_export(directory, read_manifest(directory), "fp16")
    with pytest.MonkeyPatch.context() as patch:
        written = half_bundle / "onnx" / "fp32"
        patch.setattr(
            "export.onnx_export.write_graph",
            lambda graph, path: shutil.copy(written / path.name, path),
        )
        export_onnx(directory, "fp32")
    assert usable_export(directory, read_manifest(directory), "fp16") == before
