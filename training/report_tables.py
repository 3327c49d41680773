"""An evaluation's report as tables for the terminal."""

from typing import Any

from rich.table import Table


def _percent(rate: dict[str, float]) -> str:
    return f"{rate['rate']:.1%}\n{100 * rate['low']:.0f} to {100 * rate['high']:.0f}"


def tables(report: dict[str, Any]) -> list[Table]:
    """All that was measured; rates with their 95 % intervals."""
    found = report["reconstruction"]
    values = {"PSNR": f"{found['psnr_db']:.2f} dB", "SSIM": f"{found['ssim']:.3f}"}
    if "lpips" in found:
        values["LPIPS"] = f"{found['lpips']:.4f}"
    scenes = Table("scenes", *values, title="reconstruction")
    scenes.add_row(str(found["num_scenes"]), *values.values())
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
    return [
        scenes,
        prompts,
        *_geneval(report),
        edits,
        _probe_table(report["linear_probe"]),
        *_frechet(report),
    ]


def _geneval(report: dict[str, Any]) -> list[Table]:
    """GenEval's categories and their mean, if they were measured."""
    found = report.get("geneval")
    if not found:
        return []
    names = [name.replace("_", " ") for name in found["categories"]]
    title = f"GenEval's categories, {found['num_prompts']} prompts each"
    table = Table(*names, f"mean of {len(names)}", title=title)
    if found["absent"]:
        absent = ", ".join(found["absent"]).replace("_", " ")
        table.caption = f"the world has no {absent}"
    table.add_row(*map(_percent, [*found["categories"].values(), found["overall"]]))
    return [table]


def _probe_table(found: dict[str, Any]) -> Table:
    rates = {name: value for name, value in found.items() if isinstance(value, dict)}
    table = Table("train scenes", "test scenes", *rates, title="linear probe of the tokens")
    numbers = (str(found["num_train_scenes"]), str(found["num_test_scenes"]))
    table.add_row(*numbers, *map(_percent, rates.values()))
    return table


def _frechet(report: dict[str, Any]) -> list[Table]:
    """A table for each kind of features that the Frechet distance was taken in."""
    tables = []
    for key in ("frechet", "frechet_inception"):
        if found := report.get(key):
            heading = ("pictures", "references", "painted", "true pictures")
            table = Table(*heading, title=f"Frechet distance in {found['features']}")
            numbers = (str(found["num_pictures"]), str(found["num_references"]))
            table.add_row(*numbers, f"{found['distance']:.2f}", f"{found['true_pictures']:.2f}")
            tables.append(table)
    return tables
