"""Settings of every command, from variables RPIAE_<NAME>; read once at start and passed down."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.manifest import Precision
from service.api_keys import keys_of_file, read_api_key
from service.jobs.addresses import parse_address

ENV_PREFIX = "RPIAE_"
_DEFAULT_BUNDLE = Path("bundles/stickers")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")
_PUBLIC_URL = re.compile(r"https?://[^/?#\s]+(/[^?#\s]*)?")


class SettingsError(ValueError):
    """A setting has no usable value; the message names its variable."""


class Settings(BaseSettings):
    """Durations in seconds, sizes in bytes or pixels. RPIAE_REDIS_URL sets `redis_url`, etc."""

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
    """Address the gateway listens on. Anything but loopback needs API keys, or allow_anonymous."""

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

    max_rows: int | None = Field(default=None, ge=3)
    """Model rows that step together at most; a guided edit has 3. Unset: measured at start."""

    prefill_cache_mb: int = Field(default=64, ge=0)
    """Mebibytes of each worker for prompts and sources that come again, each kept for its key
    alone; 0: none."""

    threads: int | None = Field(default=None, ge=1)
    """CPU threads of each worker. Unset: the CPUs that its container or machine gives it, over the
    workers."""

    backend: Literal["auto", "torch", "onnxruntime", "fake"] = "auto"
    """Runtime of the model. `auto`: onnxruntime where it is installed and the bundle has an export
    that passed, else torch. `fake` computes nothing real, for tests of the service."""

    precision: Precision = "fp32"
    """Of onnxruntime's graphs: fp32, or int8, which is faster and draws other pictures."""

    fake_step_s: float = Field(default=0, ge=0, le=60)
    """How long the fake runtime pretends that a denoising step takes."""

    fake_fatal_prompt: str | None = None
    """A prompt that holds this text ends the fake runtime's process, for tests of that."""

    api_keys: Annotated[tuple[str, ...], NoDecode] = ()
    """Comma-separated, each in clear or as sha256:<64 hex digits>. Held as SHA-256 digests only."""

    api_keys_file: Path | None = None
    """Further keys, one a line in the same forms; empty lines and those that begin with # do not
    count. Read once at start."""

    allow_anonymous: bool = False
    """Serve without keys on an address that others can reach."""

    rate_limit: str | None = None
    """Pictures, and batches of latents, that each key may ask for, e.g. `60/minute;5/second`.
    Without keys each client address has this much. Unset: no limit."""

    max_jobs_per_key: int = Field(default=0, ge=0)
    """Jobs that one key, or without keys one address, may have waiting or running; 0: no limit."""

    trusted_proxies: str = ""
    """Addresses or networks, comma-separated, whose X-Forwarded-For and X-Forwarded-Proto count;
    `*` trusts everybody, which lets clients choose their address."""

    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins, comma-separated, whose pages may call this service from a browser; `*`: all."""

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

    log_prompts: bool = False
    """Write prompts into the log; off, because they are the users' own words."""

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: str | None) -> str | None:
        if url is not None:
            parse_address(url)
        return url

    @field_validator("public_url")
    @classmethod
    def _check_public_url(cls, url: str | None) -> str | None:
        if url is not None and not _PUBLIC_URL.fullmatch(url):
            raise ValueError("must be http:// or https://, a host and maybe a path, nothing after")
        return url and url.rstrip("/")

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _hash_keys(cls, value: Any) -> Any:
        return tuple(read_api_key(key) for key in _items(value))

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: str) -> str:
        for address in _items(value):
            if address != "*":
                ipaddress.ip_network(address)
        return value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: Any) -> Any:
        origins = tuple(_items(value))
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin} is not an origin: write https://example.com, or *")
        return origins

    @field_validator("rate_limit")
    @classmethod
    def _check_rate_limit(cls, value: str | None) -> str | None:
        # Only here: no other command than the gateway's needs it, and it takes a while to import.
        from limits import parse_many

        try:
            if value is not None and any(item.amount < 1 for item in parse_many(value)):
                raise ValueError
        except ValueError:
            raise ValueError(f"{value!r} is no limit: write one as 60/minute;5/second") from None
        return value

    @model_validator(mode="before")
    @classmethod
    def _read_keys_file(cls, values: Any) -> Any:
        path = values.get("api_keys_file")
        if path is None:
            return values
        try:
            keys = keys_of_file(Path(path))
        except ValueError as error:
            raise ValueError(f"{ENV_PREFIX}API_KEYS_FILE: {error}") from None
        return {**values, "api_keys": [*_items(values.get("api_keys", ())), *keys]}

    @model_validator(mode="after")
    def _check_precision(self) -> Self:
        if self.precision != "fp32" and self.backend != "onnxruntime":
            raise ValueError(
                f"{ENV_PREFIX}PRECISION={self.precision} needs {ENV_PREFIX}BACKEND=onnxruntime"
            )
        return self

    @model_validator(mode="after")
    def _check_exposure(self) -> Self:
        if not (self.api_keys or self.allow_anonymous or _is_loopback(self.host)):
            raise ValueError(
                f"{ENV_PREFIX}HOST={self.host} can be reached by others: set {ENV_PREFIX}API_KEYS, "
                f"or {ENV_PREFIX}ALLOW_ANONYMOUS=true to serve everybody"
            )
        return self


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


def _items(value: Any) -> list[str]:
    """The items of a list that is written with commas."""
    items = value.split(",") if isinstance(value, str) else value
    return [item.strip() for item in items if item.strip()]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
