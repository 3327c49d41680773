"""The commands of `rpiae`: its own, and those that other packages bring.

Those come through the entry-point group `rpiae.commands` and are loaded when asked for.
"""

from importlib.metadata import entry_points
from typing import Any

import typer
from typer.core import TyperGroup

_ENTRY_POINTS = "rpiae.commands"


class CommandGroup(TyperGroup):
    """Our own commands, then those of other packages."""

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        return own + sorted(set(entry_points(group=_ENTRY_POINTS).names) - set(own))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for entry in entry_points(group=_ENTRY_POINTS, name=cmd_name):
            app = typer.Typer(add_completion=False)
            app.command(cmd_name)(entry.load())
            return typer.main.get_command(app)
        return None
