"""The world that a bundle's manifest says its model draws, as sampling needs it."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from models.manifest import BundleError
from training.stickers import World


def world_of(draws: Mapping[str, Any]) -> World:
    """Inverse of `stickers.drawable`.

    Raises:
        BundleError: a field is missing or names what this version cannot draw.
    """
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in draws.items()
    }
    if "counts" in values:
        values["same_kind_counts"] = values.pop("counts")
    missing = [field.name for field in fields(World) if field.name not in values]
    if missing:
        raise BundleError(f"manifest: draws lacks {', '.join(missing)}")
    try:
        return World(**values)
    except (TypeError, ValueError) as error:
        raise BundleError(f"manifest: draws: {error}") from None
