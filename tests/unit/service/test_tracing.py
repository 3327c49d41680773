"""When there are traces, that there is nothing without them, and what the worker's spans say."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from models.manifest import Manifest, write_manifest
from service.backends.base import Limits
from service.backends.fake_backend import FakeBackend
from service.engine.engine import Engine
from service.engine.work import Denoised, EngineCall, PictureWork, Stepped, Tick
from service.errors import BackendError
from service.job_traces import RecordedTraces
from service.jobs.job import Delivery, GenerateParams, Job
from service.running import RunningJobs
from service.settings import Settings, SettingsError
from service.tracing import JobTrace, Tracing, start_tracing

ROOT = Path(__file__).parents[3]
TRACE_ID = f"{7:032x}"


@pytest.fixture(autouse=True)
def no_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("OTEL_", "RPIAE_")):
            monkeypatch.delenv(name)


@pytest.fixture
def packages_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.otlp", None)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RPIAE_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"},
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        },
    ],
)
def test_there_are_none_unless_asked_for(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracing = start_tracing(Settings(), "worker")
    assert type(tracing) is Tracing
    assert tracing.provider is None
    assert not tracing.job_traces().wants_calls
    assert tracing.span("read") is tracing.span("answer")  # nothing is made for them


@pytest.mark.parametrize("name", ["OTLP_ENDPOINT", "otlp_endpoint"])
def test_an_endpoint_is_an_address(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"RPIAE_{name.upper()}", "collector:4318")
    with pytest.raises(ValueError, match="must be http:// or https://"):
        Settings()
    monkeypatch.setenv(f"RPIAE_{name.upper()}", "http://collector:4318/")
    assert Settings().otlp_endpoint == "http://collector:4318"


def test_missing_packages_are_named(packages_missing: None) -> None:
    settings = Settings(otlp_endpoint="http://collector:4318")
    with pytest.raises(SettingsError, match=r"RPIAE_OTLP_ENDPOINT: .* install rpiae\[tracing\]"):
        start_tracing(settings, "gateway")


def test_a_machines_own_variables_do_not_stop_the_service(
    packages_missing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/v1/traces")
    assert type(start_tracing(Settings(), "gateway")) is Tracing


def test_without_traces_nothing_of_them_is_loaded(tmp_path: Path) -> None:
    """FastAPI and the client of Redis load parts of OpenTelemetry themselves; none of these."""
    manifest = Manifest(
        name="fake",
        tasks=["generate"],
        image_size=(16, 16),
        latent_shape=(4, 2, 2),
        latents_mean=[0.0],
        latents_std=[1.0],
        timestep_shift=1.0,
    )
    write_manifest(tmp_path, manifest)
    program = """if True:
        import sys
        from service.api.app import create_app
        from service.settings import Settings
        from service.tracing import start_tracing
        import service.worker_process
        settings = Settings(redis_url="redis://localhost")
        create_app(settings)
        start_tracing(settings, "worker").job_traces()
        parts = "sdk.trace", "exporter", "proto"
        unwanted = *(f"opentelemetry.{part}" for part in parts), "google.protobuf"
        print([name for name in sys.modules if name.startswith(unwanted)])
        import service.otlp
        print([name for name in unwanted if name not in sys.modules])
    """
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "RPIAE_BUNDLE": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    off, on = finished.stdout.splitlines()
    assert off == "[]"
    assert on == "[]"  # all of them are there once it is on


@pytest.mark.parametrize("with_calls", [False, True])
def test_the_engine_notes_its_calls_where_they_are_wanted(with_calls: bool) -> None:
    limits = Limits(image_size=(16, 16), latent_shape=(4, 2, 2), max_rows=8, max_images=4)
    engine = Engine(FakeBackend(limits), shift=1.0, with_calls=with_calls)
    for job_id in ("a", "b"):
        engine.add(PictureWork(id=job_id, prompt="x", seed=1, num_steps=2, guidance_scale=1.0))
    calls = [(call.stage, call.job_ids) for _ in range(2) for call in engine.tick().calls]
    both = ("a", "b")
    stages = ("prefill", "denoise", "denoise", "decode")
    assert calls == ([(stage, both) for stage in stages] if with_calls else [])


class Recorded:
    """A worker's traces, and the spans that have ended."""

    def __init__(self) -> None:
        exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("test")
        self.traces = RecordedTraces(tracer, tracer)
        self._exporter = exporter

    @property
    def spans(self) -> list[ReadableSpan]:
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def only(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


def delivery(job_id: str = "a", *, sampled: bool = True, waited_s: float = 2.0) -> Delivery:
    params = GenerateParams(prompt="a secret", seed=1, steps=2, guidance_scale=2.0)
    job = Job(
        id=job_id,
        task="generate",
        model="m",
        params=params,
        created_at=0.0,
        traceparent=f"00-{TRACE_ID}-{7:016x}-0{int(sampled)}",
    )
    return Delivery(job, "1-1", None, num_deliveries=2, waited_s=waited_s)


def tick(*calls: EngineCall, steps: int = 0, done: bool = False) -> Tick:
    events: list[Any] = [Stepped(id, steps, 2) for call in calls for id in call.job_ids if steps]
    events += [Denoised(id) for call in calls for id in call.job_ids if done]
    return Tick(events=events, calls=calls, step_rows=4)


def seconds(span: ReadableSpan) -> float:
    assert span.end_time is not None
    assert span.start_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_a_job_begins_when_it_was_put(recorded: Recorded) -> None:
    trace = recorded.traces.begin(delivery())
    trace.outcome = "succeeded"
    trace.end()
    job, queue = recorded.only("job"), recorded.only("queue")
    assert job.context is not None
    assert f"{job.context.trace_id:032x}" == TRACE_ID
    assert job.parent is not None
    assert job.parent.span_id == 7
    assert job.start_time == pytest.approx(queue.start_time, abs=1e6)
    assert seconds(queue) == pytest.approx(2.0, abs=1e-2)
    assert job.attributes is not None
    assert job.attributes["rpiae.num_deliveries"] == 2
    assert job.attributes["rpiae.outcome"] == "succeeded"
    assert "secret" not in repr([span.to_json() for span in recorded.spans])


def test_a_result_that_came_too_late_is_not_counted_as_a_success(recorded: Recorded) -> None:
    jobs = RunningJobs(max_done=1)
    job = jobs.add(delivery())
    job.trace = recorded.traces.begin(job.delivery)
    job.trace.outcome = "succeeded"
    jobs.lose(job)  # another worker has the job meanwhile
    attributes = recorded.only("job").attributes
    assert attributes is not None
    assert attributes["rpiae.outcome"] == "released"


def test_pauses_fill_what_is_between_stages(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("service.job_traces.time.perf_counter", lambda: now)
    monkeypatch.setattr("service.job_traces.time.time_ns", lambda: round(now * 1e9))
    trace = recorded.traces.begin(delivery(waited_s=0.0))
    now = 1010.0
    ids = ("a",)
    calls = [
        EngineCall("prefill", ids, 1001.0, 1.0),
        EngineCall("denoise", ids, 1002.0, 1.0),
        EngineCall("preview", ids, 1003.0, 0.5),
        EngineCall("denoise", ids, 1004.0, 1.0),
        EngineCall("decode", ids, 1007.0, 1.0),
    ]
    recorded.traces.note(tick(calls[0], calls[1], calls[2], steps=1))
    recorded.traces.note(tick(calls[3], steps=2, done=True))
    recorded.traces.note(tick(calls[4]))
    trace.add("compress", 1008.0)
    trace.end()
    of_job = {"pause", "prefill", "denoise", "preview", "decode", "compress"}
    found = [
        (span.name, (span.start_time or 0) / 1e9, (span.end_time or 0) / 1e9)
        for span in recorded.spans
        if span.name in of_job
    ]
    assert found == [
        ("pause", 1000.0, 1001.0),
        ("prefill", 1001.0, 1002.0),
        ("denoise", 1002.0, 1005.0),
        ("preview", 1003.0, 1003.5),
        ("pause", 1005.0, 1007.0),
        ("decode", 1007.0, 1008.0),
        ("compress", 1008.0, 1010.0),
    ]


def test_a_call_is_linked_to_each_job_once(recorded: Recorded) -> None:
    for job_id in ("a", "b"):
        recorded.traces.begin(delivery(job_id))
    assert type(recorded.traces.begin(delivery("c", sampled=False))) is JobTrace
    call = EngineCall("decode", ("a", "a", "b", "c"), 0.0, 0.1)
    recorded.traces.note(tick(call))
    batch = recorded.only("batch decode")
    decodes = [span for span in recorded.spans if span.name == "decode"]
    linked = sorted(link.context.span_id for link in batch.links)
    assert linked == sorted(span.context.span_id for span in decodes if span.context)
    assert len(linked) == 2
    assert batch.attributes == {"rpiae.num_jobs": 3}
    assert batch.parent is None


def test_a_job_that_is_not_sampled_makes_no_span(recorded: Recorded) -> None:
    recorded.traces.begin(delivery(sampled=False)).end()
    recorded.traces.note(tick(EngineCall("denoise", ("a",), 0.0, 0.1), steps=1))
    assert recorded.spans == []


def test_what_is_cut_off_ends_with_its_job(recorded: Recorded) -> None:
    first = recorded.traces.begin(delivery())
    recorded.traces.note(tick(EngineCall("denoise", ("a",), 0.0, 0.1), steps=1))
    second = recorded.traces.begin(delivery())  # the same job arrives anew before the first is gone
    first.fail(BackendError("it broke at a secret"))
    first.end()
    recorded.traces.note(tick(EngineCall("denoise", ("a",), 0.0, 0.1), steps=1))
    second.end()
    failed, released = [span for span in recorded.spans if span.name == "job"]
    assert failed.attributes is not None
    assert released.attributes is not None
    assert failed.attributes["rpiae.outcome"] == "failed"
    assert failed.attributes["error.type"] == "BackendError"
    assert not failed.status.is_ok
    assert "secret" not in failed.to_json()
    assert released.attributes["rpiae.outcome"] == "released"
    assert [span.name for span in recorded.spans].count("denoise") == 2
