"""An evaluation's report as tables for the terminal."""

from typing import Any

from rich.table import Table


def _percent(rate: dict[str, float]) -> str:
    return f"{rate['rate']:.1%}\n{100 * rate['low']:.0f} to {100 * rate['high']:.0f}"


def tables(report: dict[str, Any]) -> list[Table]:
    """Reconstruction, prompts and edits; rates with their 95 % intervals."""
    found = report["reconstruction"]
    scenes = Table("scenes", "PSNR", "SSIM", title="reconstruction")
    scenes.add_row(str(found["num_scenes"]), f"{found['psnr_db']:.2f} dB", f"{found['ssim']:.3f}")
    columns = ("loose", "color", "background", "place", "strict")
    prompts = Table("prompts", "number", *columns, title="prompt following")
    for name, row in report["prompts"].items():
        rates = [_percent(row[column]) for column in columns]
        prompts.add_row(name.replace("_", " "), str(row["num_prompts"]), *rates)
    headings = ("target", "change", "unchanged area", "round trip alone")
    edits = Table("edit", "number", *headings, title="edits")
    for kind, row in report["edits"].items():
        decibels = [f"{row[key]:.1f} dB" for key in ("unchanged_psnr_db", "round_trip_psnr_db")]
        edits.add_row(
            kind, str(row["num_edits"]), _percent(row["target"]), _percent(row["change"]), *decibels
        )
    return [scenes, prompts, edits]
