"""The list of graphs: what it says of axes, samples and shapes fits the modules."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from export.graphs import MAX_ROWS, TYPICAL_ROWS, Graph, graphs
from models.bundle import Bundle, load_bundle
from models.exports import graph_names


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def by_name(bundle: Bundle) -> dict[str, Graph]:
    return {graph.name: graph for graph in graphs(bundle)}


def test_the_graphs_are_those_that_an_export_needs(bundle: Bundle) -> None:
    assert tuple(graph.name for graph in graphs(bundle)) == graph_names(bundle.manifest)


def test_only_dynamic_axes_differ_between_samples(by_name: dict[str, Graph]) -> None:
    for graph in by_name.values():
        small, large = graph.sample(2, 3), graph.sample(5, 7)
        for name, one, other in zip(graph.inputs, small, large, strict=True):
            differing = {
                axis
                for axis, pair in enumerate(zip(one.shape, other.shape, strict=True))
                if pair[0] != pair[1]
            }
            assert differing == set(graph.axes[name]), (graph.name, name)


def test_profiles_span_what_the_model_takes(by_name: dict[str, Graph]) -> None:
    velocity = by_name["velocity"].profile()
    # 4 tokens of a source and 12 of a prompt, 2 layers, 2 heads of 16 channels.
    assert velocity["keys"] == (
        (1, 2, 2, 1, 16),
        (TYPICAL_ROWS, 2, 2, 16, 16),
        (MAX_ROWS, 2, 2, 16, 16),
    )
    assert velocity["x"][-1] == (MAX_ROWS, 8, 4, 4)
    assert by_name["prefill"].profile()["prompt_tokens"] == (
        (1, 1),
        (TYPICAL_ROWS, 6),
        (MAX_ROWS, 12),
    )


def test_sampled_prompts_are_padded_at_their_ends_only(by_name: dict[str, Graph]) -> None:
    (tokens,) = by_name["prefill"].sample(9, 12)
    real = tokens != 0
    assert real[:, 0].all()
    assert real[0].all()
    assert not real.all()
    assert (real.int().diff(dim=1) <= 0).all()


def test_sampled_contexts_have_masked_keys_but_never_only_those(by_name: dict[str, Graph]) -> None:
    for length in (1, 5):
        mask: Tensor = by_name["velocity"].sample(4, length)[4]
        assert mask.any(dim=1).all()
        assert mask.all().item() == (length == 1)


def test_samples_are_the_same_every_time(by_name: dict[str, Graph]) -> None:
    for graph in by_name.values():
        for one, other in zip(graph.sample(3, 4), graph.sample(3, 4), strict=True):
            assert torch.equal(one, other)
