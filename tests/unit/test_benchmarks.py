"""What the benchmarks' README shows is what was measured."""

import json
from pathlib import Path

import pytest

from benchmarks import backends, tokenizer, trace_example, training
from benchmarks.backends_table import markdown as markdown_of_backends
from benchmarks.readme import README, fill
from benchmarks.samplers import RESULTS, markdown
from benchmarks.trace_picture import draw_trace
from export.dims import PublishedDims

PARITY = Path(__file__).parents[1] / "data" / "parity"


def test_the_samplers_table_is_that_of_its_results() -> None:
    text = README.read_text(encoding="utf-8")
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert fill(text, "samplers", markdown(report)) == text


def test_the_tokenizers_table_is_that_of_its_results() -> None:
    text = README.read_text(encoding="utf-8")
    report = json.loads(tokenizer.RESULTS.read_text(encoding="utf-8"))
    assert fill(text, "tokenizer", tokenizer.markdown(report)) == text


def test_the_trace_is_that_of_its_results_and_adds_up() -> None:
    text = trace_example.PAGE.read_text(encoding="utf-8")
    report = json.loads(trace_example.RESULTS.read_text(encoding="utf-8"))
    assert fill(text, trace_example.SECTION, trace_example.markdown(report)) == text
    spans = trace_example.spans_of(report)
    picture = trace_example.PICTURE.read_text(encoding="utf-8")
    assert draw_trace(trace_example.rows_of(spans)) == picture
    parts = trace_example.parts_s(spans)
    assert parts.keys() == trace_example.PARTS.keys()
    whole = trace_example.request_of(spans).seconds
    assert sum(parts.values()) == pytest.approx(whole, rel=0.05)


def test_the_training_table_is_that_of_its_results() -> None:
    text = README.read_text(encoding="utf-8")
    report = json.loads(training.RESULTS.read_text(encoding="utf-8"))
    assert fill(text, "training", training.markdown(report)) == text


def test_the_runtimes_table_is_that_of_its_results() -> None:
    text = README.read_text(encoding="utf-8")
    report = json.loads(backends.RESULTS.read_text(encoding="utf-8"))
    assert fill(text, "backends", markdown_of_backends(report)) == text


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_runtimes_benchmark_runs_at_a_small_size(exported_bundle: Path) -> None:
    report = backends.run(exported_bundle, threads=1, rounds=2, num_prompts=0)
    calls = [(row["call"], row["batch"]) for row in report["rows"]]
    assert calls == [(c, b) for c in ("step", "encode", "decode", "picture") for b in (1, 4, 16)]
    assert all(seconds > 0 for row in report["rows"] for seconds in row["seconds"].values())
    report["qualities"] = [{"side": "onnxruntime int8", "psnr_db": 41.27, "right": 0.905}]
    table = markdown_of_backends(report)
    assert "| step | 16 |" in table
    assert "| onnxruntime int8 | 41.3 dB | 90.5% |" in table


def test_the_tokenizers_benchmark_runs_at_a_small_size() -> None:
    """It compares the outputs of both sides before it measures them."""
    report = tokenizer.run(PublishedDims.read(PARITY / "config.json"), rounds=2)
    calls = {(row["call"], row["batch"]) for row in report["rows"]}
    assert calls == {(c, b) for c in ("encode", "decode", "denoising step") for b in (1, 8)}
    assert all(row["error"] < tokenizer.TOLERANCE for row in report["rows"])
    assert "| encode, float32 | 1 |" in tokenizer.markdown(report)


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
