"""Profiles of engines: arithmetic on the axes of graphs, and the line for NVIDIA's own program."""

import shlex
from pathlib import Path

import pytest

from export.graphs import Graph, graphs
from export.tensorrt_profiles import profiles, row_buckets, trtexec_command
from models.bundle import load_bundle


@pytest.fixture(scope="module")
def by_name(tiny_bundle: Path) -> dict[str, Graph]:
    return {graph.name: graph for graph in graphs(load_bundle(tiny_bundle))}


@pytest.mark.parametrize(
    ("graph", "max_rows", "expected"),
    [
        ("velocity", 32, (1, 2, 4, 8, 16, 32)),
        ("velocity", 24, (1, 2, 4, 8, 16, 24)),
        ("guide_velocity", 3, (1, 2, 3)),
        ("velocity", 1, (1,)),
        ("decode", 32, (1, 4, 16)),
        ("prefill", 6, (1, 4, 6)),
        ("encode", 2, (1, 2)),
    ],
)
def test_buckets_ascend_to_the_most_rows(
    graph: str, max_rows: int, expected: tuple[int, ...]
) -> None:
    assert row_buckets(graph, max_rows) == expected


@pytest.mark.parametrize("max_rows", range(1, 70))
def test_no_batch_of_steps_is_more_than_doubled(max_rows: int) -> None:
    buckets = row_buckets("velocity", max_rows)
    assert buckets[-1] == max_rows
    for rows in range(1, max_rows + 1):
        assert min(b for b in buckets if b >= rows) < 2 * rows


def test_there_must_be_a_row() -> None:
    with pytest.raises(ValueError, match="max_rows must be >= 1, got 0"):
        row_buckets("velocity", 0)


def test_profiles_have_every_input_at_its_largest_but_for_the_rows(
    by_name: dict[str, Graph],
) -> None:
    for graph in by_name.values():
        largest = {name: shapes[-1] for name, shapes in graph.profile().items()}
        found = profiles(graph, 8)
        assert [shapes[graph.inputs[0]][0] for shapes in found] == list(row_buckets(graph.name, 8))
        for shapes in found:
            assert set(shapes) == set(graph.inputs)
            assert len({shape[0] for shape in shapes.values()}) == 1
            for name, shape in shapes.items():
                assert shape[1:] == largest[name][1:]


def test_the_context_of_a_profile_is_that_of_the_service(by_name: dict[str, Graph]) -> None:
    # 4 tokens of a source and 12 of a prompt, to which every context is padded.
    assert profiles(by_name["velocity"], 2)[1]["keys"] == (2, 2, 2, 16, 16)
    assert profiles(by_name["prefill"], 2)[0]["prompt_tokens"] == (1, 12)


def test_the_line_for_trtexec(by_name: dict[str, Graph]) -> None:
    line = trtexec_command(
        Path("my models/decode.onnx"),
        Path("decode.fp16.plan"),
        profiles(by_name["decode"], 4),
        precision="fp16",
        workspace_bytes=2 * 2**30,
        timing_cache=Path("timing.cache"),
    )
    assert shlex.split(line) == [
        "trtexec",
        "--onnx=my models/decode.onnx",
        "--saveEngine=decode.fp16.plan",
        "--stronglyTyped",
        "--decomposableAttentions=*",
        "--memPoolSize=workspace:2048M",
        "--timingCacheFile=timing.cache",
        "--skipInference",
        "--profile=0",
        "--minShapes=latents:1x8x4x4",
        "--optShapes=latents:1x8x4x4",
        "--maxShapes=latents:1x8x4x4",
        "--profile=1",
        "--minShapes=latents:4x8x4x4",
        "--optShapes=latents:4x8x4x4",
        "--maxShapes=latents:4x8x4x4",
    ]


def test_float32_products_are_not_of_tf32(by_name: dict[str, Graph]) -> None:
    line = trtexec_command(
        Path("a.onnx"),
        Path("a.plan"),
        profiles(by_name["decode"], 1),
        precision="fp32",
        workspace_bytes=2**30,
        timing_cache=Path("timing.cache"),
    )
    assert "--noTF32" in shlex.split(line)
