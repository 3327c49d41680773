"""Log lines are JSON and carry the ids of the request and the job."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from service.log import bind_request, configure_logging, get_logger


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers, root.level
    stream = io.StringIO()
    configure_logging("info", stream=stream)
    yield stream
    logging.captureWarnings(False)
    root.handlers, root.level = before
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_our_lines_and_those_of_libraries_look_alike(lines: io.StringIO) -> None:
    bind_request("req-1", route="/v1/models")
    get_logger("service.api").info("answered", status=200)
    logging.getLogger("uvicorn.error").warning("late by %d s", 3, extra={"color_message": "\x1b"})
    get_logger("service.api").debug("too fine to be written")

    ours, theirs = parsed(lines)
    assert (ours["event"], ours["status"], ours["level"]) == ("answered", 200, "info")
    assert (theirs["event"], theirs["level"]) == ("late by 3 s", "warning")
    assert theirs["logger"] == "uvicorn.error"
    assert "color_message" not in theirs
    assert {line["request_id"] for line in (ours, theirs)} == {"req-1"}
    assert {line["route"] for line in (ours, theirs)} == {"/v1/models"}


def test_a_request_replaces_what_was_bound_before(lines: io.StringIO) -> None:
    bind_request("req-1", route="/v1/models")
    bind_request("req-2")
    get_logger("service.api").info("answered")

    (line,) = parsed(lines)
    assert line["request_id"] == "req-2"
    assert "route" not in line


def test_the_console_has_lines_for_the_eyes(lines: io.StringIO) -> None:
    stream = io.StringIO()
    configure_logging("info", "console", stream=stream)
    bind_request("req-1")
    get_logger("service.api").info("answered", status=200)
    try:
        raise ValueError("broken")
    except ValueError:
        get_logger("service.api").exception("request failed")
    first, second, *trace = stream.getvalue().splitlines()
    assert "answered" in first
    assert "status=200" in first
    assert "request_id=req-1" in first
    assert "request failed" in second
    assert "ValueError: broken" in trace[-1]
    assert "\x1b" not in stream.getvalue()  # no colours where nobody sees them
    assert lines.getvalue() == ""


def test_exceptions_come_as_one_line(lines: io.StringIO) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        get_logger("service").exception("job failed")
    [line] = parsed(lines)
    assert "ValueError: broken" in line["exception"]


def test_warnings_of_libraries_are_lines_too(lines: io.StringIO) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("Corrupt EXIF data", stacklevel=1)

    (line,) = parsed(lines)
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")
    assert "Corrupt EXIF data" in line["event"]
