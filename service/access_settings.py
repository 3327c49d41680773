"""Settings of who may ask, and for how much; part of `service.settings.Settings`."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.api_keys import keys_of_file, read_api_key

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


class AccessSettings(BaseSettings):
    """Keys, addresses that are trusted, and the limits of each caller."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    api_keys: Annotated[tuple[str, ...], NoDecode] = ()
    """Comma-separated, each in clear or as sha256:<64 hex digits>. Held as SHA-256 digests only."""

    api_keys_file: Path | None = None
    """Further keys, one a line in the same forms; empty lines and those that begin with # do not
    count. Read once at start."""

    admin_keys: Annotated[tuple[str, ...], NoDecode] = ()
    """Keys, in the forms of api_keys, that may have the workers load another bundle. Without any
    the service has no such address."""

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

    @field_validator("api_keys", "admin_keys", mode="before")
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
            raise ValueError(f"RPIAE_API_KEYS_FILE: {error}") from None
        return {**values, "api_keys": [*_items(values.get("api_keys", ())), *keys]}


def _items(value: Any) -> list[str]:
    """The items of a list that is written with commas."""
    items = value.split(",") if isinstance(value, str) else value
    return [item.strip() for item in items if item.strip()]
