"""docs/api-reference.md: every endpoint with its fields, from the gateway's own description."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from docs.markdown import code, default_of, one_line, table, type_of
from service import errors
from service.api.app import create_app
from service.api.images.schemas import CompletedEvent, PartialImageEvent
from service.settings import Settings

_INTRODUCTION = """\
# API reference

Written by `python -m docs.generate` from the service's own description, which it also answers at
`/openapi.json` and shows at `/docs`: do not edit. [api.md](api.md) has examples.

Where a service has API keys, every endpoint under `/v1` needs `Authorization: Bearer <key>`;
those under `/v1/admin` exist only where it has admin keys, and need one of these. Every answer
has an `x-request-id`. Fields that are not listed are refused with 422, and so are values out of
range; a null counts as an absent field. What depends on the model (offered sizes, most steps,
default steps) is told by `GET /v1/models`.
"""
_ERRORS = """\
Every error has this body:

```json
{"error": {"message": "...", "type": "...", "param": "... or null", "code": "..."}}
```

`message` says what is wrong, with the values, and what to change; `param` names the field. These
are the families, each with what it answers where nothing more special is known. All codes, and what
to do about each, stand in [api.md](api.md#errors-and-what-to-do-about-them).

"""
_METHODS = ("get", "post", "delete")
_FIELD_HEAD = ("field", "type and range", "default", "meaning")


def reference_page() -> str:
    """The whole page."""
    # With an admin key, so that what needs one is described too.
    settings = Settings(redis_url="redis://localhost", admin_keys=("any-key-at-all",))
    schema = create_app(settings).openapi()
    endpoints = [
        (f"{method.upper()} {path}", operations[method])
        for path, operations in schema["paths"].items()
        for method in _METHODS
        if method in operations
    ]
    index = table(
        ("endpoint", "what it does"),
        ((code(name), _first_sentence(endpoint)) for name, endpoint in endpoints),
    )
    parts = [_INTRODUCTION, index, "\n## Endpoints"]
    parts += [_endpoint(name, endpoint) for name, endpoint in endpoints]
    parts += ["\n## Events of a stream", _event(PartialImageEvent), _event(CompletedEvent)]
    parts += ["\n## Objects"]
    parts += [_object(name, fields) for name, fields in schema["components"]["schemas"].items()]
    parts += ["\n## Errors", _errors()]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _endpoint(name: str, endpoint: Mapping[str, Any]) -> str:
    parts = [f"### `{name}`", endpoint["description"]]
    if parameters := endpoint.get("parameters"):
        rows = (
            (
                code(each["name"]),
                each["in"],
                type_of(each["schema"]),
                default_of(each["schema"], required=each.get("required", False)),
                each.get("description", ""),
            )
            for each in parameters
        )
        parts.append(table(("parameter", "where", "type and range", "default", "meaning"), rows))
    parts += _bodies(endpoint.get("requestBody", {}).get("content", {}))
    answers = sorted(endpoint["responses"].items())  # `default` comes last
    parts.append(table(("status", "body", "meaning"), map(_answer, answers)))
    return "\n\n".join(parts)


def _bodies(content: Mapping[str, Any]) -> Iterator[str]:
    """The media types that are only bytes in one line, then the fields of each other."""
    plain = [name for name, body in content.items() if "properties" not in body["schema"]]
    if plain:
        yield f"Body: {', '.join(map(code, plain))}, the file's bytes."
    for name, body in content.items():
        if name not in plain:
            yield f"Body: `{name}`"
            yield table(_FIELD_HEAD, _fields(body["schema"]))


def _answer(item: tuple[str, Mapping[str, Any]]) -> tuple[str, str, str]:
    status, answer = item
    kinds = answer.get("content", {})
    json_schema = kinds.get("application/json", {}).get("schema", {})
    names = [code(name) for name in kinds if name != "application/json" or not json_schema]
    if "$ref" in json_schema:
        names.insert(0, f"{type_of(json_schema)} as `application/json`")
    elif json_schema:
        names.insert(0, "`application/json`")
    text = answer.get("description", "")
    if status == "default":
        return "others", "`application/json`", f"{text} See [Errors](#errors)."
    headers = ", ".join(
        f"`{name}`: {header['description']}" for name, header in answer.get("headers", {}).items()
    )
    text = "Done." if text == "Successful Response" else text
    return status, ", ".join(names), f"{text} Headers: {headers}" if headers else text


def _event(model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    return f"### {model.__name__}\n\n{schema['description']}\n\n" + table(
        _FIELD_HEAD, _fields(schema)
    )


def _object(name: str, schema: Mapping[str, Any]) -> str:
    parts = [f"### {name}"]
    if "description" in schema:
        parts.append(schema["description"])
    if "properties" in schema:
        parts.append(table(_FIELD_HEAD, _fields(schema)))
    else:
        parts.append(f"One of {type_of(schema)}.")
    return "\n\n".join(parts)


def _fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        yield (
            code(name),
            type_of(field),
            default_of(field, required=name in required),
            field.get("description", ""),
        )


def _errors() -> str:
    """The tree of service/errors.py; a code that stands for a more special case has its status."""
    rows = []
    for kind in vars(errors).values():
        if not (inspect.isclass(kind) and issubclass(kind, errors.ServiceError)):
            continue
        if kind is errors.ServiceError:
            meaning = "Nobody foresaw it: report the `x-request-id` of the answer."
        else:
            meaning = _first_paragraph(kind)
        rows.append(
            (str(kind.default_status), code(kind.default_type), code(kind.default_code), meaning)
        )
    return _ERRORS + table(("status", "type", "code", "when"), rows)


def _first_paragraph(kind: type) -> str:
    """Of the class's own docstring."""
    text = kind.__doc__ or ""
    return one_line(text.partition("\n\n")[0])


def _first_sentence(endpoint: Mapping[str, Any]) -> str:
    return one_line(endpoint["description"]).partition(". ")[0].removesuffix(".") + "."
