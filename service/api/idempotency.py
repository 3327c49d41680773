"""`Idempotency-Key`: which requests repeat an earlier one."""

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, TypeAlias

from fastapi import Request

from service.errors import InvalidRequest

# Spaces at the ends are no part of a header's value.
KEY_PATTERN = "[!-~]([ -~]{0,253}[!-~])?"

# What a request asks for: fields as JSON, files as bytes.
Content: TypeAlias = Iterable[Any]


def idempotency_key(request: Request) -> str:
    """The key that the client gave its request; empty for none.

    Raises:
        InvalidRequest: 400, it is too long or not printable.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return ""
    if not re.fullmatch(KEY_PATTERN, key):
        raise InvalidRequest(
            "Idempotency-Key must have 1 to 255 printable ASCII characters: a random UUID is good",
            param="Idempotency-Key",
            code="invalid_value",
        )
    return key


def fingerprint(path: str, content: Content) -> str:
    """SHA-256 hex digest of what is asked for.

    Equal for requests that mean the same, whatever the order of their fields, their multipart
    boundaries and the form in which their answer is wanted. Takes time with large files.
    """
    parts = [
        {"sha256": hashlib.sha256(part).hexdigest()}
        if isinstance(part, bytes | memoryview)
        else part
        for part in content
    ]
    canonical = json.dumps([path, *parts], sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
