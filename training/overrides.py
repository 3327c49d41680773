"""Changing fields of a config from text: `optim.lr=3e-4`, checked against the field's type."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class OverrideError(ValueError):
    """An override names no field, or its value does not fit the field."""


def apply_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """A copy of a dataclass with fields set from `name=value`; dots reach into nested ones.

    Raises:
        OverrideError: names the field and says what it takes.
    """
    changes = []
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise OverrideError(f"{text!r} is not field=value, as in optim.lr=3e-4")
        changes.append(_Change(path.strip().split("."), value.strip(), path.strip()))
    return _changed(config, changes) if changes else config


class _Change(NamedTuple):
    """A value's text for the field at the end of `path`; `whole` is what the user wrote."""

    path: Sequence[str]
    text: str
    whole: str


def _changed(config: Any, changes: Sequence[_Change]) -> Any:
    """All changes at once, so that fields which only fit together can be set in any order."""
    known = [field.name for field in fields(config)]
    values: dict[str, Any] = {}
    nested: dict[str, list[_Change]] = {}
    for (name, *rest), text, whole in changes:
        if name not in known:
            raise OverrideError(f"{whole}: no field {name!r}; there are {', '.join(known)}")
        current = getattr(config, name)
        if rest:
            if not is_dataclass(current):
                raise OverrideError(f"{whole}: {name} has no fields of its own")
            nested.setdefault(name, []).append(_Change(rest, text, whole))
        elif is_dataclass(current):
            inner = ", ".join(f"{name}.{field.name}" for field in fields(current))
            raise OverrideError(f"{whole}: set one of {inner}")
        else:
            values[name] = _parse(text, get_type_hints(type(config))[name], whole)
    for name, inner_changes in nested.items():
        values[name] = _changed(getattr(config, name), inner_changes)
    try:
        return replace(config, **values)
    except ValueError as error:
        names = ", ".join(dict.fromkeys(change.whole for change in changes))
        raise OverrideError(f"{names}: {error}") from None


def _parse(text: str, kind: Any, whole: str) -> Any:
    """`text` as a value of the annotation `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if type(None) in arguments and text.lower() == "none":
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return _parse(text, kind, whole)
    if origin is Literal:
        if text not in arguments:
            raise OverrideError(f"{whole}: {text!r} is none of {', '.join(map(str, arguments))}")
        return text
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
        if len(parts) != len(arguments):
            raise OverrideError(f"{whole}: takes {len(arguments)} values, got {text!r}")
        pairs = zip(parts, arguments, strict=True)
        return tuple(_parse(part, argument, whole) for part, argument in pairs)
    return _parse_plain(text, kind, whole)


def _parse_plain(text: str, kind: Any, whole: str) -> Any:
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise OverrideError(f"{whole}: {text!r} is not true or false")
        return _BOOLEANS[text.lower()]
    if kind not in (int, float, str):
        raise OverrideError(f"{whole}: cannot be set from the command line")
    try:
        return kind(text)
    except ValueError:
        name = {int: "a whole number", float: "a number"}[kind]
        raise OverrideError(f"{whole}: {text!r} is not {name}") from None


def flat(config: Any, prefix: str = "") -> Mapping[str, Any]:
    """Every field of a dataclass by its dotted name."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            found |= flat(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value
    return found
