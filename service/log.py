"""Log lines on stderr, with the ids of the request, the job and the trace they belong to."""

import logging
import sys
from typing import Any, Literal, TextIO, TypeAlias

import structlog
from structlog.contextvars import bind_contextvars, clear_contextvars, merge_contextvars
from structlog.types import EventDict, Processor

LogFormat: TypeAlias = Literal["json", "console"]

# Libraries that speak through the standard library and repeat what we log, or log per request.
_QUIET_LOGGERS = ("uvicorn.access", "httpx", "httpcore", "python_multipart")


def configure_logging(
    level: str = "info", log_format: LogFormat = "json", *, stream: TextIO | None = None
) -> None:
    """Send our own and the libraries' log lines to `stream` (stderr unless given).

    Called once by each process; stdout stays free for a command's own output.
    """
    target = sys.stderr if stream is None else stream
    shared: list[Processor] = [
        merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.StackInfoRenderer(),
        _drop_colours,
    ]
    renderers: list[Processor]
    if log_format == "json":
        shared.append(structlog.processors.format_exc_info)
        renderers = [structlog.processors.JSONRenderer(ensure_ascii=False)]
    else:
        # The default prints local variables too, and with them what users wrote.
        plain = structlog.dev.plain_traceback
        renderers = [
            structlog.dev.ConsoleRenderer(colors=target.isatty(), exception_formatter=plain)
        ]
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *renderers,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)  # libraries' warnings as lines of the log too
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Logger of one module: `log.info("job finished", job_id=..., seconds=...)`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def bind_request(request_id: str, **fields: Any) -> None:
    """Start a new set of fields that every line of the current task carries."""
    clear_contextvars()
    bind_contextvars(request_id=request_id, **fields)


def _drop_colours(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """uvicorn adds each message a second time, with terminal colours."""
    event.pop("color_message", None)
    return event
