"""Pieces of Markdown that the generated pages consist of."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def one_line(text: str) -> str:
    """Text for a cell of a table: no line breaks, no bars."""
    return " ".join(text.split()).replace("|", "\\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, one line for each row."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(one_line, line))} |" for line in lines)


def code(value: object) -> str:
    """A value as code inside a line."""
    return f"`{value}`"


def type_of(schema: Mapping[str, Any], link: str = "") -> str:
    """What a JSON schema lets through, in words: `integer, 1 to 10`.

    Args:
        schema: of one value. That null is let through as well is not said.
        link: where objects of their own are described, a page or nothing for this one.
    """
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}]({link}#{name.lower()})"
    if "enum" in schema:
        return ", ".join(code(value) for value in schema["enum"])
    if "const" in schema:
        return code(schema["const"])
    for word in ("anyOf", "oneOf"):
        if word in schema:
            parts = [type_of(part, link) for part in schema[word] if part.get("type") != "null"]
            return " or ".join(dict.fromkeys(parts)) + _range(schema)
    if "allOf" in schema:
        return type_of(schema["allOf"][0], link)
    kind = schema.get("type", "any value")
    if kind == "array":
        if "prefixItems" in schema:
            parts = [type_of(part, link) for part in schema["prefixItems"]]
            return f"list of {len(parts)}: {', '.join(dict.fromkeys(parts))}"
        return f"list of {type_of(schema.get('items', {}), link)}" + _length(schema)
    if kind == "object":
        values = schema.get("additionalProperties")
        if isinstance(values, Mapping) and values:
            return f"object of {type_of(values, link)}"
        return "object"
    if schema.get("format") == "binary":
        return "bytes"
    if isinstance(kind, list):
        kind = " or ".join(name for name in kind if name != "null")
    return str(kind) + _range(schema)


def default_of(schema: Mapping[str, Any], *, required: bool) -> str:
    """A field's default as code; `required` where there is none, nothing where it is null."""
    if required:
        return "required"
    value = schema.get("default")
    if value is None:
        return ""
    if isinstance(value, bool):
        return code(str(value).lower())
    return code('""') if value == "" else code(value)


def _range(schema: Mapping[str, Any]) -> str:
    limits = (schema.get(name) for name in ("minimum", "exclusiveMinimum", "maximum"))
    low, above, high = (limit if limit is None else _number(limit) for limit in limits)
    text = ""
    if low is not None or above is not None:
        text = f", above {above}" if low is None else f", {low}"
        text += f" to {high}" if high is not None else (" or more" if low is not None else "")
    elif high is not None:
        text = f", at most {high}"
    return text


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _length(schema: Mapping[str, Any]) -> str:
    least = schema.get("minItems")
    return "" if least is None else f", at least {least}"
