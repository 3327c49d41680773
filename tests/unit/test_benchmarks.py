"""What the benchmarks' README shows is what was measured."""

import json

import pytest

from benchmarks.readme import README, fill
from benchmarks.samplers import RESULTS, markdown


def test_the_samplers_table_is_that_of_its_results() -> None:
    text = README.read_text(encoding="utf-8")
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert fill(text, "samplers", markdown(report)) == text


def test_a_section_is_replaced_between_its_markers() -> None:
    text = "a\n<!-- x:start -->\n\nold\n\n<!-- x:end -->\nb <!-- y:start --><!-- y:end -->"
    assert fill(text, "x", "new") == text.replace("old", "new")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- x:start -->",
        "<!-- x:end --><!-- x:start -->",
        "<!-- x:start --><!-- x:end --><!-- x:start --><!-- x:end -->",
    ],
)
def test_a_section_without_its_pair_of_markers(text: str) -> None:
    with pytest.raises(ValueError, match="needs one <!-- x:start -->"):
        fill(text, "x", "new")
