"""Settings of every command, from variables RPIAE_<NAME>; read once at start and passed down."""

import hashlib
import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ENV_PREFIX = "RPIAE_"
_DEFAULT_BUNDLE = Path("bundles/stickers")
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
_MIN_KEY_CHARS = 8


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
    """redis://, rediss:// or unix:// address. Unset: `rpiae serve` starts a private Redis."""

    bundle: Path = Field(default_factory=lambda: _default_bundle())
    """Directory of the model to serve; by default bundles/stickers here or beside the package."""

    host: str = "127.0.0.1"
    """Address the gateway listens on. Anything but loopback needs API keys, or allow_anonymous."""

    port: int = Field(default=8000, ge=0, le=65535)
    """Port of the gateway; 0 takes a free one."""

    workers: int = Field(default=1, ge=1, le=64)
    """Worker processes that `rpiae serve` starts and keeps alive."""

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

    max_rows: int | None = Field(default=None, ge=3)
    """Model rows that step together at most; a guided edit has 3. Unset: what the device bears."""

    threads: int | None = Field(default=None, ge=1)
    """CPU threads of each worker. Unset: the machine's cores divided by the workers."""

    backend: Literal["torch", "fake"] = "torch"
    """Runtime of the model; `fake` computes nothing real, for tests of the service."""

    fake_step_s: float = Field(default=0, ge=0, le=60)
    """How long the fake runtime pretends that a denoising step takes."""

    api_keys: Annotated[tuple[str, ...], NoDecode] = ()
    """Comma-separated, each in clear or as sha256:<64 hex digits>. Held as SHA-256 digests only."""

    allow_anonymous: bool = False
    """Serve without keys on an address that others can reach."""

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
        if url is not None and not url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must start with redis://, rediss:// or unix://")
        return url

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _hash_keys(cls, value: Any) -> Any:
        keys = value.split(",") if isinstance(value, str) else value
        return tuple(_digest(key.strip()) for key in keys if key.strip())

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


def hash_api_key(key: str) -> str:
    """SHA-256 hex digest of a key, the form in which keys are held and jobs name their owner."""
    return hashlib.sha256(key.encode()).hexdigest()


def _default_bundle() -> Path:
    """bundles/stickers in the working directory, else beside the package."""
    beside_package = Path(__file__).resolve().parents[1] / _DEFAULT_BUNDLE
    return _DEFAULT_BUNDLE if _DEFAULT_BUNDLE.is_dir() else beside_package


def _digest(key: str) -> str:
    hashed = _SHA256.fullmatch(key)
    if hashed:
        return hashed[1]
    if key.startswith("sha256:"):
        raise ValueError("sha256: must be followed by 64 lower-case hex digits")
    if len(key) < _MIN_KEY_CHARS:
        raise ValueError(
            f"a key has {len(key)} characters, at least {_MIN_KEY_CHARS} are needed; "
            "`openssl rand -hex 24` makes a good one"
        )
    return hash_api_key(key)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
