"""Request bodies to validated fields, and validation errors to sentences that name the field.

Endpoints read their bodies here rather than through the framework's parameters, so that a key is
checked before the body is read, and every failure has one shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, TypeVar

import pydantic_core
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from service.errors import InvalidRequest

FieldsT = TypeVar("FieldsT", bound=BaseModel)

MAX_FORM_FIELDS = 64
_SHOWN_ERRORS = 5


@dataclass(frozen=True)
class Form:
    """A multipart body: text fields and the bytes of its files; `image[]` counts as `image`."""

    fields: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)


def media_type(request: Request) -> str:
    """The body's declared type in lower case without parameters; empty when undeclared."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, max_bytes: int | None = None) -> bytes:
    """The whole body; the service-wide limit is enforced below, `max_bytes` is this endpoint's own.

    Raises:
        InvalidRequest: 413 when the body is larger, 400 when there is none.
    """
    chunks: list[bytes] = []
    num_bytes = 0
    async for chunk in request.stream():
        num_bytes += len(chunk)
        if max_bytes is not None and num_bytes > max_bytes:
            raise body_too_large(max_bytes)
        chunks.append(chunk)
    if num_bytes == 0:
        raise InvalidRequest("the request has no body", status=400, code="empty_body")
    return b"".join(chunks)


def body_too_large(max_bytes: int) -> InvalidRequest:
    """The error for a body above a limit."""
    return InvalidRequest(
        f"the request body is larger than {max_bytes} bytes: send less",
        status=413,
        code="body_too_large",
    )


def require_media_type(request: Request, *allowed: str) -> str:
    """The body's type if the endpoint reads it.

    Raises:
        InvalidRequest: 415, listing what the endpoint reads.
    """
    declared = media_type(request)
    if declared not in allowed:
        raise InvalidRequest(
            f"content-type is {declared or 'missing'}: send {' or '.join(allowed)}",
            status=415,
            code="unsupported_media_type",
        )
    return declared


def parse_json(data: bytes, schema: type[FieldsT]) -> FieldsT:
    """Fields of a JSON object; types are taken strictly, `"2"` is not a number.

    Raises:
        InvalidRequest: 400 not JSON; 422 naming each wrong field.
    """
    try:
        fields = pydantic_core.from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest(
            f"the body is not valid JSON: {error}", status=400, code="invalid_json"
        ) from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object", status=422, code="invalid_json")
    return validate_fields(fields, schema, strict=True)


def validate_fields(fields: dict[str, Any], schema: type[FieldsT], *, strict: bool) -> FieldsT:
    """Fields checked against a schema; a null counts as absent, as in OpenAI's interface.

    Raises:
        InvalidRequest: 422 naming each wrong field.
    """
    present = {
        name: value
        for name, value in fields.items()
        if value is not None or name not in schema.model_fields
    }
    try:
        return schema.model_validate(present, strict=strict)
    except ValidationError as error:
        raise invalid_fields(error.errors(), list(schema.model_fields)) from None


def invalid_fields(errors: Sequence[Any], known: Sequence[str] = ()) -> InvalidRequest:
    """One error for all that pydantic found wrong; `param` is the first field."""
    sentences = [_sentence(error, known) for error in errors[:_SHOWN_ERRORS]]
    if len(errors) > _SHOWN_ERRORS:
        sentences.append(f"and {len(errors) - _SHOWN_ERRORS} more")
    first = errors[0]
    code = {
        "missing": "missing_required_parameter",
        "extra_forbidden": "unknown_parameter",
    }.get(first["type"], "invalid_value")
    return InvalidRequest(
        "; ".join(sentences), status=422, param=_field_name(first) or None, code=code
    )


async def read_form(request: Request, *, max_files: int) -> Form:
    """A multipart body, files in memory.

    Raises:
        InvalidRequest: 415 not multipart; 422 too many files, a field given twice.
        HTTPException: 400 not well-formed.
    """
    require_media_type(request, "multipart/form-data")
    form = Form()
    # One file more than allowed is let through the parser, so that the error can name the field.
    async with request.form(max_files=max_files + 1, max_fields=MAX_FORM_FIELDS) as parts:
        for raw_name, value in parts.multi_items():
            name = raw_name.removesuffix("[]")
            if isinstance(value, UploadFile):
                form.files.setdefault(name, []).append(await value.read())
            elif name in form.fields:
                raise InvalidRequest(f"{name} is given twice: send it once", status=422, param=name)
            else:
                form.fields[name] = value
    return form


def _field_name(error: Any) -> str:
    return ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "header"))


def _sentence(error: Any, known: Sequence[str]) -> str:
    name = _field_name(error)
    if error["type"] == "missing":
        return f"{name} is required"
    if error["type"] == "extra_forbidden":
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "leave it out"
        return f"{name} is not a field of this request: {hint}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{name}: {message[0].lower()}{message[1:]}" if name else message
