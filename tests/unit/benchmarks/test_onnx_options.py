"""Session options are compared on the same step, and only their time may differ."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.onnx_options import RESULTS, VARIANTS, markdown, measure, steps_of, table
from benchmarks.readme import README, fill


@pytest.mark.slow
@pytest.mark.timeout(300)  # the fixtures export bundles
@pytest.mark.parametrize("name", ["exported_bundle", "exported_class_bundle"])
def test_all_variants_compute_the_same(name: str, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(name)
    outputs = {name: step() for name, step in steps_of(bundle, 2, 1).items()}
    assert outputs.keys() == VARIANTS.keys()
    (expected,) = outputs["as served"]
    for (found,) in outputs.values():
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_variants_take_turns_and_first_runs_do_not_count() -> None:
    order: list[str] = []
    steps = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    medians = measure(steps, 3)
    assert order == ["a", "b"] * 5
    assert medians.keys() == {"a", "b"}


def test_ratios_are_to_what_is_served() -> None:
    rows = {"as served": {"1 rows": 10.0, "4 rows": 20.0}, "other": {"1 rows": 5.0, "4 rows": 30.0}}
    assert table(rows).splitlines() == [
        "| option | 1 rows | 4 rows |",
        "| --- | --- | --- |",
        "| as served | 10.0 ms (1.00) | 20.0 ms (1.00) |",
        "| other | 5.0 ms (0.50) | 30.0 ms (1.50) |",
    ]


def test_the_readme_shows_what_was_measured() -> None:
    text = README.read_text(encoding="utf-8")
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert fill(text, "onnx-options", markdown(report)) == text
    assert report["milliseconds"].keys() == VARIANTS.keys()
