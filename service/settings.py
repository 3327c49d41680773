"""Settings of every command, from variables RPIAE_<NAME>; read once at start and passed down."""

import ipaddress
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import SettingsConfigDict

from service.access_settings import AccessSettings
from service.backend_settings import BackendSettings
from service.jobs.addresses import parse_address

ENV_PREFIX = "RPIAE_"
_DEFAULT_BUNDLE = Path("bundles/stickers")
_HTTP_URL = re.compile(r"https?://[^/?#\s]+(/[^?#\s]*)?")


class SettingsError(ValueError):
    """A setting has no usable value; the message names its variable."""


class Settings(AccessSettings, BackendSettings):
    """Durations in seconds, sizes in bytes or pixels. RPIAE_REDIS_URL sets `redis_url`, etc.

    Those of keys and limits are in service/access_settings.py, of the model's runtime in
    service/backend_settings.py.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    redis_url: str | None = None
    """redis://, rediss:// or unix:// address; or redis+sentinel://host:port,host:port/service, or
    redis+cluster://host:port,host:port (see service/jobs/addresses.py). Unset: `rpiae serve` starts
    a private Redis."""

    bundle: Path = Field(default_factory=lambda: _default_bundle())
    """Directory of the model to serve; by default bundles/stickers here or beside the package."""

    host: str = "127.0.0.1"
    """Address the gateway listens on, for which anything but loopback needs API keys, or
    allow_anonymous; and that of the workers' metrics where metrics_port is set."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port of the gateway; 0 takes a free one."""

    workers: int = Field(default=1, ge=1, le=64)
    """Worker processes that `rpiae serve` starts and keeps alive."""

    gateway_processes: int = Field(default=1, ge=1, le=64)
    """Processes that answer on the gateway's port; those that die are started again."""

    queue_name: str = Field(default="default", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Name of the queue in Redis; gateways and workers of one name work together."""

    lease_s: float = Field(default=15, gt=0.1, le=3600)
    """A job whose worker is silent this long is given to another. Renewed every third of it."""

    result_ttl_s: float = Field(default=600, gt=0, le=86400 * 7)
    """How long results, events and the record of a finished job stay."""

    max_waiting: int = Field(default=256, ge=1)
    """Jobs that may wait, for each priority; above it requests are refused with Retry-After."""

    max_deliveries: int = Field(default=3, ge=1, le=100)
    """Workers that may die of a job before it is given up."""

    dead_letter_ttl_s: float = Field(default=86400 * 7, gt=0, le=86400 * 90)
    """How long a job that was given up can be put back with `rpiae jobs requeue`."""

    read_timeout_s: float = Field(default=20, gt=0, le=3600)
    """How long the head of a request may take to arrive, and its body, which may take a second more
    for every 16 KiB."""

    idle_timeout_s: float = Field(default=75, gt=0, le=3600)
    """How long a connection may wait for its next request, and an answer for its reader."""

    max_connections: int = Field(default=8192, ge=8)
    """Connections of one gateway process. Beyond it those that idle longest are closed, and when
    all are busy requests are refused with 503."""

    max_body_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Largest request body."""

    max_pixels: int = Field(default=2**25, ge=1)
    """Largest uploaded picture, width x height, refused before it is decoded."""

    max_prompt_chars: int = Field(default=2000, ge=1)
    """Longest prompt."""

    max_latents: int = Field(default=64, ge=1)
    """Most pictures or latents in one encode or decode request."""

    max_encode_side: int = Field(default=1024, ge=16, le=8192)
    """Longest side in pixels that encode and decode run beside the model's own size."""

    request_timeout_s: float = Field(default=120, gt=0, le=3600)
    """How long a request waits for its pictures before it is answered 504."""

    wait_for_worker_s: float = Field(default=0, ge=0, le=3600)
    """How long a request waits for a worker while there is none, within its own time, before it is
    answered 503; 0: at once. For workers that are started when jobs wait, down to none."""

    async_timeout_s: float = Field(default=3600, gt=0, le=86400)
    """How long a request that does not wait (Prefer: respond-async) may take."""

    public_url: str | None = None
    """Address under which clients reach the gateway, e.g. https://pictures.example, for links to
    results. Unset: the host that each request names."""

    drain_timeout_s: float = Field(default=30, ge=0, le=3600)
    """After SIGTERM: how long running jobs may go on before they are given back."""

    metrics_port: int = Field(default=0, ge=0, le=65535)
    """First port of the workers' metrics, worker i exports on port + i; 0 takes free ones."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines that are written."""

    log_format: Literal["json", "console"] = "json"
    """`json`: an object in each line; `console`: for the eyes."""

    log_prompts: bool = False
    """Write prompts into the log; off, because they are the users' own words."""

    otlp_endpoint: str | None = None
    """Address of an OpenTelemetry collector (OTLP over HTTP) that gets traces, e.g.
    http://collector:4318. Unset: OTEL_EXPORTER_OTLP_ENDPOINT, and without that there are none."""

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: str | None) -> str | None:
        if url is not None:
            parse_address(url)
        return url

    @field_validator("public_url", "otlp_endpoint")
    @classmethod
    def _check_http_url(cls, url: str | None) -> str | None:
        if url is not None and not _HTTP_URL.fullmatch(url):
            raise ValueError("must be http:// or https://, a host and maybe a path, nothing after")
        return url and url.rstrip("/")

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    def check_exposure(self) -> None:
        """Keep a gateway from serving everybody by mistake; it calls this before it listens.

        Raises:
            SettingsError: others can reach `host`, there are no keys, and that is not wished for.
        """
        if not (self.api_keys or self.allow_anonymous or _is_loopback(self.host)):
            raise SettingsError(
                f"{ENV_PREFIX}HOST={self.host} can be reached by others: set {ENV_PREFIX}API_KEYS, "
                f"or {ENV_PREFIX}ALLOW_ANONYMOUS=true to serve everybody"
            )


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment; `overrides` (a command's options) win, None means not given.

    Raises:
        SettingsError: one line per unusable value, each naming its variable.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            name = str(problem["loc"][0]).upper() if problem["loc"] else ""
            message = problem["msg"].removeprefix("Value error, ")
            lines.append(f"{ENV_PREFIX}{name}: {message}" if name else message)
        raise SettingsError("; ".join(lines)) from None


def _default_bundle() -> Path:
    """bundles/stickers in the working directory, else beside the package."""
    beside_package = Path(__file__).resolve().parents[1] / _DEFAULT_BUNDLE
    return _DEFAULT_BUNDLE if _DEFAULT_BUNDLE.is_dir() else beside_package


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
