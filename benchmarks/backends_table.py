"""The table of `benchmarks.backends`: seconds by runtime, and how good the pictures are."""

import textwrap
from dataclasses import dataclass
from typing import Any

from benchmarks.backends_sides import EAGER
from training.provenance import short_revision


@dataclass(frozen=True, kw_only=True)
class Row:
    """One call at one batch size: median seconds, and the lowest, by side."""

    call: str
    batch: int
    seconds: dict[str, float]
    lowest: dict[str, float]

    def ratio(self, side: str, to: str = EAGER) -> float:
        return self.seconds[to] / self.seconds[side]


@dataclass(frozen=True, kw_only=True)
class Quality:
    """psnr_db: mean over pictures against PyTorch's; right: share that the judge finds right."""

    side: str
    psnr_db: float
    right: float


def line(row: Row) -> str:
    sides = (
        f"{name} {1e3 * seconds:.2f} ms ({row.ratio(name):.2f})"
        for name, seconds in row.seconds.items()
    )
    return f"{row.call}, {row.batch}: " + ", ".join(sides)


def markdown(report: dict[str, Any]) -> str:
    """What stands in the README: seconds and ratios, quality, and how they were measured."""
    rows = [Row(**fields) for fields in report["rows"]]
    sides = list(rows[0].seconds)  # PyTorch as it is comes first
    lines = ["| call | batch | " + " | ".join(sides) + " |", "|---|---:|" + "---:|" * len(sides)]
    for row in rows:
        cells = [shown(row, EAGER)]
        cells += [f"{shown(row, name)}, **{row.ratio(name):.2f}**" for name in sides[1:]]
        lines.append(f"| {row.call} | {row.batch} | " + " | ".join(cells) + " |")
    blocks = ["\n".join(lines)]
    if report["qualities"]:
        table = ["| | PSNR against torch | pictures that are right |", "|---|---:|---:|"]
        for one in (Quality(**fields) for fields in report["qualities"]):
            near = "" if one.side == EAGER else f"{one.psnr_db:.1f} dB"
            table.append(f"| {one.side} | {near} | {one.right:.1%} |")
        blocks.append("\n".join(table))
    machine = report["hardware"]
    drawn = f"; {report['num_prompts']} held-out prompts" if report["qualities"] else ""
    on_cpu = report.get("device", "cpu") == "cpu"
    clock = "of the CPU" if on_cpu and machine["threads"] == 1 else "of the clock"
    processor = machine["processor"] if on_cpu else f"{machine['gpu']}, {machine['processor']}"
    note = (
        f"Milliseconds {clock}, of pictures also pictures per second, and the ratio to torch; "
        f"medians of {report['rounds']} rounds in turns. A picture has {report['steps']} steps "
        f"with guidance, so twice as many model rows as its batch. "
        f"Bundle `{report['bundle']}`{drawn}; "
        f"{processor}, {machine['threads']} thread(s) of {machine['cores']} cores, "
        f"torch {report['versions']['torch']}, onnxruntime {report['versions']['onnxruntime']}, "
        f"revision `{short_revision(report['revision'])}`."
    )
    return "\n\n".join([*blocks, textwrap.fill(note, 100, break_on_hyphens=False)])


def shown(row: Row, side: str) -> str:
    number = 1e3 * row.seconds[side]
    milliseconds = f"{number:.0f} ms" if number >= 100 else f"{number:.3g} ms"
    if row.call != "picture":
        return milliseconds
    return f"{milliseconds} ({row.batch / row.seconds[side]:.1f}/s)"
