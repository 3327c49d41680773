"""The trace of one real edit, into docs/tracing.md: a picture, and how its parts add up.

    python -m benchmarks.trace_example [--steps 20]

It starts the service with a collector of its own, draws a picture, edits it, and keeps the edit's
spans in benchmarks/results/trace_example.json.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from benchmarks.readme import fill, write_report
from benchmarks.serving import own_server
from benchmarks.trace_picture import draw_trace
from benchmarks.trace_receiver import ReceivedSpan, TraceReceiver, trace_receiver

RESULTS = Path(__file__).parent / "results" / "trace_example.json"
PAGE = Path(__file__).parents[1] / "docs" / "tracing.md"
PICTURE = PAGE.parent / "images" / "trace-edit.svg"
SECTION = "trace"

_TRACE_ID = f"{0xED17:032x}"
_WIDTH = 40  # characters of the longest bar
_TIMEOUT_S = 120
# What a request waits for, one after the other; the first are the gateway's, then the job's.
PARTS = {
    "read": "the body is received, checked and the picture decoded",
    "enqueue": "checks of the limits, and the job's way into Redis",
    "queue": "the job waits for a worker to take it",
    "prepare": "the worker reads the picture from the job",
    "encode": "the source picture to latents",
    "prefill": "instruction and source to the keys and values that all steps use",
    "denoise": "the steps, and what is between them",
    "decode": "latents to the picture",
    "compress": "the picture to a PNG file",
    "publish": "the file and the job's end into Redis",
    "pause": "between these: the job waits for its turn on the engine's thread or the loop",
    "wait": "after the job's end: the gateway hears of it and fetches the file",
    "answer": "the file into the JSON answer",
}


def edit_picture(url: str, picture: bytes, steps: int, trace_id: str) -> None:
    """One edit as part of a trace.

    Raises:
        httpx.HTTPStatusError: it did not succeed.
    """
    answer = httpx.post(
        f"{url}/v1/images/edits",
        files={"image": ("picture.png", picture, "image/png")},
        data={"prompt": "make it blue", "seed": 7, "steps": steps},
        headers={"traceparent": f"00-{trace_id}-00000000000000ed-01"},
        timeout=_TIMEOUT_S,
    )
    answer.raise_for_status()


def draw_picture(url: str, prompt: str, steps: int) -> bytes:
    """A picture to edit, as a PNG file.

    Raises:
        httpx.HTTPStatusError: it did not succeed.
    """
    answer = httpx.post(
        f"{url}/v1/images/generations",
        json={"prompt": prompt, "seed": 7, "steps": steps},
        headers={"accept": "image/png", "traceparent": f"00-{1:032x}-{1:016x}-00"},
        timeout=_TIMEOUT_S,
    )
    answer.raise_for_status()
    return answer.content


def whole_trace(receiver: TraceReceiver, trace_id: str) -> list[ReceivedSpan]:
    """The spans of an edit by their start, once both processes have sent theirs.

    Raises:
        TimeoutError: they did not.
    """

    def complete(spans: Sequence[ReceivedSpan]) -> bool:
        names = {span.name for span in spans if span.trace_id == trace_id}
        return "job" in names and any(name.startswith("POST") for name in names)

    receiver.wait_for(complete)
    return receiver.spans(trace_id)


def request_of(spans: Sequence[ReceivedSpan]) -> ReceivedSpan:
    """The span of the whole request."""
    (request,) = [span for span in spans if span.name.startswith("POST")]
    return request


def parts_s(spans: Sequence[ReceivedSpan]) -> dict[str, float]:
    """Seconds of each of PARTS that the trace of an edit has, none of them twice."""
    (job,) = [span for span in spans if span.name == "job"]
    sums: dict[str, float] = {}
    for span in spans:
        start, end = span.start, span.end
        if span.name == "enqueue":  # it hears from Redis that the job is there when it has begun
            end = min(end, job.start)
        elif span.name == "wait":
            start = min(max(start, job.end), end)
        sums[span.name] = sums.get(span.name, 0.0) + end - start
    return {name: sums[name] for name in PARTS if name in sums}


def rows_of(spans: Sequence[ReceivedSpan]) -> list[tuple[int, str, ReceivedSpan]]:
    """Depth in the tree, label and span of all spans of a request, from above."""
    return list(_below(spans, request_of(spans), 0))


def waterfall(spans: Sequence[ReceivedSpan]) -> str:
    """One line for each span: its place in the tree, its milliseconds, when it was."""
    rows = rows_of(spans)
    _, _, request = rows[0]
    lines = []
    for depth, label, span in rows:
        start = round(_WIDTH * (span.start - request.start) / request.seconds)
        end = round(_WIDTH * (span.end - request.start) / request.seconds)
        bar = " " * min(start, _WIDTH - 1) + "█" * max(1, end - start)
        lines.append(f"{'  ' * depth + label:28}{1000 * span.seconds:8.1f} ms  {bar}")
    return "\n".join(lines)


def spans_of(report: dict[str, Any]) -> list[ReceivedSpan]:
    """The spans that a report holds."""
    return [ReceivedSpan(**{**each, "linked_ids": ()}) for each in report["spans"]]


def markdown(report: dict[str, Any]) -> str:
    """The section of the page."""
    spans = spans_of(report)
    total_s, parts = request_of(spans).seconds, parts_s(spans)
    steps_ms = sorted(1000 * span.seconds for span in spans if span.name == "step")
    words = PARTS | {
        "denoise": f"{len(steps_ms)} steps of {steps_ms[0]:.1f} to {steps_ms[-1]:.1f} ms, and what "
        "is between them"
    }
    share = sum(parts.values()) / total_s
    return "\n".join(
        [
            f"![Each span of the edit over time](images/{PICTURE.name})",
            "",
            "| span | what it is | ms |",
            "| --- | --- | ---: |",
            *(f"| {name} | {words[name]} | {1000 * parts[name]:.1f} |" for name in parts),
            f"| all of these | {share:.1%} of the request | {1000 * sum(parts.values()):.1f} |",
            f"| POST /v1/images/edits | the request | {1000 * total_s:.1f} |",
        ]
    )


def _below(
    spans: Sequence[ReceivedSpan], top: ReceivedSpan, depth: int
) -> Iterator[tuple[int, str, ReceivedSpan]]:
    """A span and all below it, depth first, by their start."""
    step = top.attributes.get("rpiae.step")
    yield depth, f"{top.name} {step}" if step else top.name, top
    for span in spans:
        if span.parent_id == top.span_id:
            yield from _below(spans, span, depth + 1)


def main() -> None:
    """Run, keep, and put into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of the edit")
    steps = parser.parse_args().steps
    with trace_receiver() as receiver:
        os.environ |= {"RPIAE_OTLP_ENDPOINT": receiver.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with own_server() as url:
            # All that is made for the first time of a process is made by these.
            edit_picture(url, draw_picture(url, "a red circle", steps), steps, f"{1:032x}")
            edit_picture(url, draw_picture(url, "a red apple", steps), steps, _TRACE_ID)
            spans = whole_trace(receiver, _TRACE_ID)
    report = {"steps": steps, "spans": [{**asdict(span), "linked_ids": []} for span in spans]}
    write_report(RESULTS, report)
    PICTURE.write_text(draw_trace(rows_of(spans)), encoding="utf-8")
    PAGE.write_text(fill(PAGE.read_text("utf-8"), SECTION, markdown(report)), encoding="utf-8")
    print(waterfall(spans), markdown(report), sep="\n\n")


if __name__ == "__main__":
    main()
