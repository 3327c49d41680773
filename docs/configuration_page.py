"""The table of settings in docs/configuration.md, from the class that reads them."""

from typing import Any

from pydantic_settings import BaseSettings

from docs.markdown import code, default_of, table, type_of
from service.settings import ENV_PREFIX, Settings


def settings_tables() -> str:
    """One table for each class that Settings consists of, under what the class is about."""
    fields: dict[str, dict[str, Any]] = Settings.model_json_schema()["properties"]
    parts = []
    for kind in Settings.__mro__:
        own = [name for name in getattr(kind, "__annotations__", {}) if name in fields]
        if not own or kind is BaseSettings:
            continue
        title = "The service" if kind is Settings else (kind.__doc__ or "").partition("\n")[0]
        rows = (
            (
                code(f"{ENV_PREFIX}{name.upper()}"),
                type_of(fields[name]),
                _default(fields[name]),
                fields[name]["description"],
            )
            for name in own
        )
        parts.append(f"### {title.rstrip('.')}")
        parts.append(table(("variable", "type and range", "default", "what it does"), rows))
    return "\n\n".join(parts)


def _default(field: dict[str, Any]) -> str:
    """As one writes it into a variable; an empty list is no default."""
    if field.get("default") in ([], ""):
        return ""
    return default_of(field, required=False)
