"""The comparison's results as tables, and the plot beside them, from their JSON files alone.

Run: python -m training.comparison.report, or with --check to see only whether the files that show
the results are up to date.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from training.comparison.measure import PRETRAINED, RESULTS
from training.comparison.plot import Panel, draw_plot
from training.comparison.variants import VARIANTS
from training.provenance import short_revision
from training.readme import fill

START, END = "<!-- comparison:start -->", "<!-- comparison:end -->"
README = Path("training/README.md")
PLOT = Path("training/comparison/comparison.png")

Report = Mapping[str, Any]
Results = Mapping[str, Sequence[Report]]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One column: its heading, a report's value (None: not measured), digits after the point."""

    heading: str
    value: Callable[[Report], float | None]
    digits: int = 1


def _at(*path: str, scale: float = 1.0) -> Callable[[Report], float | None]:
    """The number at a path of keys."""

    def value(report: Report) -> float | None:
        found: Any = report
        for key in path:
            if not isinstance(found, Mapping) or key not in found:
                return None
            found = found[key]
        return None if found is None else scale * float(found)

    return value


def _mean_edit(*path: str, scale: float = 1.0) -> Callable[[Report], float | None]:
    """Mean over the kinds of edits."""

    def value(report: Report) -> float | None:
        values = [_at(*path, scale=scale)(one) for one in report.get("edits", {}).values()]
        known = [one for one in values if one is not None]
        return sum(known) / len(known) if known else None

    return value


TOKENIZER_METRICS = (
    Metric(heading="PSNR, dB", value=_at("reconstruction", "psnr_db")),
    Metric(heading="SSIM", value=_at("reconstruction", "ssim"), digits=3),
    Metric(heading="kind from tokens, %", value=_at("probe", "tokens", "kind", "rate", scale=100)),
    Metric(
        heading="colour from tokens, %", value=_at("probe", "tokens", "color", "rate", scale=100)
    ),
    Metric(
        heading="kind from latents, %", value=_at("probe", "latents", "kind", "rate", scale=100)
    ),
    Metric(
        heading="colour from latents, %", value=_at("probe", "latents", "color", "rate", scale=100)
    ),
)


def _prompt(category: str, verdict: str) -> Callable[[Report], float | None]:
    return _at("prompts", category, verdict, "rate", scale=100)


DENOISER_METRICS = (
    Metric(heading="one shape: background, %", value=_prompt("one_shape", "background")),
    Metric(heading="colour, %", value=_prompt("one_shape", "color")),
    Metric(heading="shown, %", value=_prompt("one_shape", "loose")),
    Metric(heading="strictly, %", value=_prompt("one_shape", "strict")),
    Metric(heading="two shapes: colours, %", value=_prompt("two_shapes", "color")),
    Metric(heading="both shown, %", value=_prompt("two_shapes", "loose")),
    Metric(heading="edits made, %", value=_mean_edit("change", "rate", scale=100)),
    Metric(heading="edits strictly, %", value=_mean_edit("target", "rate", scale=100)),
    Metric(heading="rest kept, dB", value=_mean_edit("unchanged_psnr_db")),
    Metric(heading="Frechet", value=_at("frechet", "distance")),
)
_PLOTTED = (
    ("PSNR, dB", TOKENIZER_METRICS[0]),
    ("kind from latents, %", TOKENIZER_METRICS[4]),
    ("one shape: background, %", DENOISER_METRICS[0]),
    ("one shape: shown, %", DENOISER_METRICS[2]),
    ("edits made, %", DENOISER_METRICS[6]),
    ("Frechet distance (less is better)", DENOISER_METRICS[9]),
)


def read_results(folder: Path) -> dict[str, list[Report]]:
    """Reports by variant, in the variants' order, each sorted by seed; pretrained ones first.

    Raises:
        ValueError: a file is no report; it is named.
    """
    found: dict[str, list[Report]] = {name: [] for name in (PRETRAINED, *VARIANTS)}
    for path in sorted(folder.glob("*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            found.setdefault(report["variant"], []).append(report)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no result of `rpiae evaluate compare`: {error}") from None
    return {
        name: sorted(reports, key=lambda report: int(report["seed"]))
        for name, reports in found.items()
        if reports
    }


def values(metric: Metric, reports: Sequence[Report]) -> list[float]:
    """The metric of each seed that has it."""
    return [value for value in map(metric.value, reports) if value is not None]


def cell(metric: Metric, reports: Sequence[Report]) -> str:
    """Mean over seeds, and their standard deviation where there are several."""
    found = values(metric, reports)
    if not found:
        return "-"
    mean = sum(found) / len(found)
    text = f"{mean:.{metric.digits}f}"
    if len(found) < 2:
        return text
    variance = sum((value - mean) ** 2 for value in found) / (len(found) - 1)
    return f"{text} ± {math.sqrt(variance):.{metric.digits}f}"


def _channels(reports: Sequence[Report]) -> str:
    shape = reports[0].get("latent_shape")
    return str(shape[0]) if shape else "-"


def _rows(results: Results, metrics: Sequence[Metric]) -> list[list[str]]:
    """One row per variant that has any of the metrics."""
    return [
        [
            name,
            _channels(reports),
            str(len(reports)),
            *(cell(metric, reports) for metric in metrics),
        ]
        for name, reports in results.items()
        if any(values(metric, reports) for metric in metrics)
    ]


def _headings(metrics: Sequence[Metric]) -> list[str]:
    return ["tokenizer", "channels", "seeds", *(metric.heading for metric in metrics)]


def _markdown(results: Results, metrics: Sequence[Metric]) -> str:
    heading = _headings(metrics)
    lines = [heading, ["---"] * len(heading), *_rows(results, metrics)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def circumstances(results: Results) -> str:
    """How the figures came about: numbers of samples, steps, machine, revisions."""
    reports = [report for name, all_seeds in results.items() for report in all_seeds]
    measured = [report for report in reports if report["variant"] != PRETRAINED]
    one = (measured or reports)[0]
    samples, hardware = one["samples"], one["hardware"]
    steps = {run["stage"]: run["steps"] for run in one["runs"]}
    tokenizer = sum(
        run["steps"] for run in one["runs"] if run["stage"] not in ("pretrain", "diffusion")
    )
    revisions = sorted({short_revision(report["revision"]) for report in reports})
    return (
        f"Held-out: {samples['scenes']} scenes for PSNR and SSIM, {2 * samples['scenes']} to learn "
        f"a probe and as many to test it, {samples['prompts']} prompts with one shape and "
        f"{max(1, samples['prompts'] // 2)} with two, {samples['edits']} edits of each kind; "
        f"{samples['steps']} steps, guidance scale {samples['guidance_scale']:g}. Trained: "
        f"{tokenizer:,} steps for each tokenizer, {steps.get('diffusion', 0):,} for each denoiser. "
        f"± is the standard deviation over seeds. {hardware['processor']}, torch "
        f"{one['versions']['torch']}, revision {', '.join(revisions)}."
    )


def comparison_block(results: Results) -> str:
    """What stands between the markers of training/README.md."""
    link = PLOT.relative_to(README.parent).as_posix()
    return "\n\n".join(
        [
            _markdown(results, TOKENIZER_METRICS),
            _markdown(results, DENOISER_METRICS),
            f"![The tokenizers side by side]({link})",
            circumstances(results),
        ]
    )


def panels(results: Results) -> list[Panel]:
    """What the plot shows: a panel per metric, a row per variant, a dot per seed."""
    found = {name: reports for name, reports in results.items() if name != PRETRAINED}
    return [
        Panel(
            title=title,
            digits=metric.digits,
            rows={name: values(metric, reports) for name, reports in found.items()},
        )
        for title, metric in _PLOTTED
    ]


def terminal_tables(folder: Path) -> list[Table]:
    """All results so far; none where there are none."""
    results = read_results(folder)
    if not results:
        return []
    tables = []
    for title, metrics in (("tokenizers", TOKENIZER_METRICS), ("denoisers", DENOISER_METRICS)):
        table = Table(*_headings(metrics), title=title)
        for row in _rows(results, metrics):
            table.add_row(*row)
        tables.append(table)
    return tables


def main() -> int:
    """Exit status: 1 if --check finds outdated figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--plot", type=Path, default=PLOT)
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    results = read_results(arguments.results)
    if not any(name in VARIANTS for name in results):
        sys.stderr.write(f"{arguments.results} holds no results: run `rpiae evaluate compare`\n")
        return 1
    before = arguments.readme.read_text(encoding="utf-8")
    after = fill(before, comparison_block(results), START, END)
    if arguments.check:
        if before != after:
            sys.stderr.write(f"{arguments.readme} is outdated\n")
        return int(before != after)
    arguments.readme.write_text(after, encoding="utf-8")
    draw_plot(panels(results)).save(arguments.plot, optimize=True)
    sys.stderr.write(f"{arguments.readme} and {arguments.plot} written\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
