"""Exports: files that compute what PyTorch does, a record that says so, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from export import cli, onnx_export
from export.graphs import Graph, graphs
from export.onnx_files import OPSET, ExportError, graph_paths, write_graph
from export.parity import Tolerances, compare_graph
from models.bundle import Bundle, load_bundle
from models.exports import usable_export
from models.manifest import BundleError, Export, Manifest, read_manifest, write_manifest
from models.onnx_model import load_export
from models.onnx_session import GraphError, GraphSession
from service.cli import app

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # tracing takes seconds for each graph


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def decode(bundle: Bundle) -> Graph:
    return next(graph for graph in graphs(bundle) if graph.name == "decode")


def change_export(directory: Path, change: Callable[[Export], Export]) -> Manifest:
    """Rewrite a bundle's first export; the manifest."""
    manifest = read_manifest(directory)
    exports = [change(manifest.exports[0]), *manifest.exports[1:]]
    write_manifest(directory, manifest.model_copy(update={"exports": exports}))
    return read_manifest(directory)


def test_every_graph_is_proven_at_every_batch_and_length(exported_bundle: Path) -> None:
    plain, int8 = read_manifest(exported_bundle).exports
    assert (plain.precision, int8.precision) == ("fp32", "int8")
    lengths = {"prefill": 12, "prefill_source": 12, "velocity": 16}
    for artifact in plain.artifacts:
        parity = artifact.parity
        assert parity.passed
        assert parity.max_error < parity.tolerance == 1e-4
        assert parity.batches == [1, 3, 16]
        assert parity.context_lengths == list(range(1, lengths.get(artifact.graph, 0) + 1))
    assert plain.picture_psnr_db is not None
    assert plain.picture_psnr_db >= 50
    assert plain.opset == OPSET


def test_int8_shares_the_graphs_that_stay_as_they_are(exported_bundle: Path) -> None:
    plain, int8 = read_manifest(exported_bundle).exports
    shared = {artifact.graph for artifact in int8.artifacts if artifact in plain.artifacts}
    assert shared == {"encode", "prefill", "prefill_source"}
    by_name = {artifact.graph: artifact for artifact in int8.artifacts}
    products = {"velocity": 0, "decode": 0}
    for name in products:
        model = onnx.load(exported_bundle / by_name[name].files[0].path)
        products[name] = sum(node.op_type == "MatMulInteger" for node in model.graph.node)
        assert {node.domain for node in model.graph.node} == {""}
    # 2 blocks of qkv, proj, w12 and w3; decode has one in its bridge and one in its decoder, and
    # the layer between the two.
    assert products == {"velocity": 8, "decode": 9}


def test_a_row_of_int8_does_not_depend_on_the_others(exported_bundle: Path, bundle: Bundle) -> None:
    manifest = read_manifest(exported_bundle)
    export = usable_export(exported_bundle, manifest, "int8")
    session = load_export(exported_bundle, manifest, export).sessions["velocity"]
    graph = next(graph for graph in graphs(bundle) if graph.name == "velocity")
    inputs = dict(zip(graph.inputs, graph.sample(5, 16), strict=True))
    inputs["x"][1:] *= 100  # a scale for the whole batch would leave the first row nothing
    (together,) = session.run(inputs, (inputs["x"].shape,))
    first = {name: tensor[:1] for name, tensor in inputs.items()}
    (alone,) = session.run(first, (first["x"].shape,))
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-5)


def test_a_published_bundle_is_exported_too(exported_class_bundle: Path) -> None:
    export = usable_export(exported_class_bundle, read_manifest(exported_class_bundle), "fp32")
    assert export.passed
    names = [artifact.graph for artifact in export.artifacts]
    assert names == ["encode", "decode", "velocity", "guide_velocity"]
    assert all(artifact.parity.context_lengths == [] for artifact in export.artifacts)


def test_large_weights_lie_beside_the_graph(decode: Graph, tmp_path: Path) -> None:
    path = tmp_path / "decode.onnx"
    write_graph(decode, path, max_inside_bytes=0)
    graph, weights = graph_paths(path)
    parameters = sum(parameter.nbytes for parameter in decode.module.parameters())
    assert weights.stat().st_size > parameters / 2  # small tensors stay in the graph
    assert compare_graph(decode, path, 1e-4, batches=(2,)).passed
    assert sorted(tmp_path.iterdir()) == [graph, weights]


class _FixedBatch(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return latents.reshape(len(latents), -1) * 2


def test_a_graph_with_a_fixed_axis_is_refused(decode: Graph, tmp_path: Path) -> None:
    graph = replace(decode, module=_FixedBatch(), outputs=("images",))
    with pytest.raises(ExportError, match="decode"):
        write_graph(graph, tmp_path / "fixed.onnx")


class _Off(nn.Module):
    """A module whose outputs are wrong in one value."""

    def __init__(self, module: nn.Module, value: float) -> None:
        super().__init__()
        self.module, self.value = module, value

    def forward(self, latents: Tensor) -> Tensor:
        images: Tensor = self.module(latents)
        images.flatten()[-1] += self.value
        return images


@pytest.mark.parametrize("value", [0.01, float("nan")])
def test_one_wrong_value_is_found(decode: Graph, exported_bundle: Path, value: float) -> None:
    path = exported_bundle / "onnx" / "fp32" / "decode.onnx"
    graph = replace(decode, module=_Off(decode.module, value))
    parity = compare_graph(graph, path, 1e-4, batches=(3,))
    assert not parity.passed
    assert parity.max_error > 1e-4


def test_what_did_not_pass_is_recorded_and_not_served(
    exported_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "tiny"
    shutil.copytree(exported_bundle, directory)
    strict = Tolerances(tolerance=1e-9, min_picture_psnr_db=50)
    monkeypatch.setitem(onnx_export.TOLERANCES, "int8", strict)
    result = CliRunner().invoke(app, ["export", str(directory), "--onnx", "--precision", "int8"])
    assert result.exit_code == 1
    assert "it is not served: " in result.output
    with pytest.raises(BundleError, match=r"int8 export did not pass parity: .*velocity"):
        usable_export(directory, read_manifest(directory), "int8")
    assert usable_export(directory, read_manifest(directory), "fp32").passed


def test_a_new_fp32_export_takes_that_of_int8_along(
    exported_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shares files with it."""
    directory = tmp_path / "tiny"
    shutil.copytree(exported_bundle, directory)
    written = exported_bundle / "onnx" / "fp32"
    monkeypatch.setattr(
        onnx_export, "write_graph", lambda graph, path: shutil.copy(written / path.name, path)
    )
    assert onnx_export.export_onnx(directory, "fp32").passed
    (export,) = read_manifest(directory).exports
    assert export.precision == "fp32"
    assert sorted(path.name for path in (directory / "onnx").iterdir()) == ["fp32"]


def test_exports_that_may_not_be_served(
    tiny_bundle: Path, exported_bundle: Path, tmp_path: Path
) -> None:
    remedy = "`rpiae export .* --onnx --precision fp32` makes it anew"
    with pytest.raises(BundleError, match=f"has no fp32 export; {remedy}"):
        usable_export(tiny_bundle, read_manifest(tiny_bundle), "fp32")

    directory = tmp_path / "tiny"
    shutil.copytree(exported_bundle, directory)
    graph = directory / "onnx" / "fp32" / "velocity.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(BundleError, match=r"damaged: onnx/fp32/velocity.onnx differs .*" + remedy):
        usable_export(directory, read_manifest(directory), "fp32")
    graph.unlink()
    with pytest.raises(BundleError, match=r"damaged: onnx/fp32/velocity.onnx is missing"):
        usable_export(directory, read_manifest(directory), "fp32")

    manifest = change_export(directory, lambda e: e.model_copy(update={"weights_sha256": "0" * 64}))
    with pytest.raises(BundleError, match="made from other weights"):
        usable_export(directory, manifest, "fp32")


def test_an_export_without_all_graphs(exported_bundle: Path, tmp_path: Path) -> None:
    directory = tmp_path / "tiny"
    shutil.copytree(exported_bundle, directory)
    manifest = change_export(
        directory, lambda e: e.model_copy(update={"artifacts": e.artifacts[:2]})
    )
    with pytest.raises(BundleError, match="lacks the graphs prefill, prefill_source, velocity"):
        usable_export(directory, manifest, "fp32")


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    path = tmp_path / "decode.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"onnxruntime cannot load .*decode\.onnx"):
        GraphSession(path)


def test_inputs_that_do_not_fit_a_graph(exported_bundle: Path) -> None:
    session = GraphSession(exported_bundle / "onnx" / "fp32" / "decode.onnx")
    with pytest.raises(GraphError):
        session.run({"latents": torch.zeros(1, 8, 4, 5)}, ((1, 3, 32, 32),))


def test_the_record_is_read_back_from_the_manifest(exported_bundle: Path) -> None:
    fields = json.loads((exported_bundle / "manifest.json").read_text(encoding="utf-8"))
    assert {export["precision"] for export in fields["exports"]} == {"fp32", "int8"}
    assert set(fields["exports"][0]["made_with"]) == {"torch", "onnx", "onnxscript", "onnxruntime"}


def test_the_command_wants_to_know_to_what(tiny_bundle: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(tiny_bundle)])
    assert result.exit_code == 2
    assert "--onnx" in result.output


def test_the_command_names_packages_that_are_missing(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "onnxscript" else name)
    result = CliRunner().invoke(app, ["export", str(tiny_bundle), "--onnx"])
    assert result.exit_code == 2
    assert "error: onnxscript not installed: pip install" in result.output
