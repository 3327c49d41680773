"""Training throughput of every stage, against the loop of the published trainers.

    python -m benchmarks.training [--rounds 15]

Same modules, same starting weights, same images, one thread: `reference_training` on one side, the
stages' own steps on the other, with PyTorch's linear layers and with oneDNN's. The sides take
turns; a ratio is that of their medians. Then real runs' batches are drawn and read at the pace of
their steps, and the time that the steps wait for them is measured. Prints tables, writes
results/training.json and the section in README.md.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.data_files import photograph
from benchmarks.readme import write_section
from benchmarks.training_contests import Contest, contests, our_pivot, preset
from training.config import AutoencoderConfig, DataConfig
from training.image_source import image_source
from training.provenance import git_revision, hardware, short_revision, versions

RESULTS = Path(__file__).parent / "results" / "training.json"
NUM_PHOTOGRAPHS = 256


@dataclass(frozen=True, kw_only=True)
class Row:
    """Median seconds of a step; ratio: reference / ours; spread: of neighbouring steps."""

    stage: str
    batch: int
    kernels: str
    reference_s: float
    ours_s: float
    ratio: float
    spread: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Wait:
    """What part of a loop's time its steps wait for their batches."""

    data: str
    images_per_s: float
    wait_share: float


def measure(contest: Contest, rounds: int) -> Iterator[Row]:
    """Times the sides in turns, after a first step of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contest.sides}
    for number in range(rounds + 1):
        for name, step in contest.sides.items():
            started = time.perf_counter()
            step(number)
            seconds[name].append(time.perf_counter() - started)
    published = seconds.pop("reference")[1:]
    for kernels, values in seconds.items():
        ours = values[1:]
        ratios = [theirs / mine for theirs, mine in zip(published, ours, strict=True)]
        reference_s, ours_s = statistics.median(published), statistics.median(ours)
        yield Row(
            stage=contest.stage,
            batch=contest.batch,
            kernels=kernels,
            reference_s=reference_s,
            ours_s=ours_s,
            ratio=reference_s / ours_s,
            spread=(min(ratios), max(ratios)),
        )


def measure_waits(num_steps: int, folder: Path) -> Iterator[Wait]:
    """Stage 1 on stickers, and on photographs that one worker process reads ahead."""
    for number in range(NUM_PHOTOGRAPHS):
        (folder / f"{number}.jpg").write_bytes(photograph(number % 16, 500, 375))
    kinds = {
        "stickers, drawn in the loop": DataConfig(),
        "folder of JPEGs, 1 worker": DataConfig(kind="folder", path=str(folder), num_workers=1),
    }
    for name, data in kinds.items():
        config: AutoencoderConfig = replace(preset("pivot", "onednn"), data=data)
        source = image_source(config, folder / "runs", list(range(config.batch_size)))
        step = our_pivot(source.batch(0), "onednn")
        waited, started = 0.0, time.perf_counter()
        for number in range(1, num_steps + 1):
            asked = time.perf_counter()
            source.batch(number)
            waited += time.perf_counter() - asked
            step(number)
        elapsed = time.perf_counter() - started
        yield Wait(
            data=name,
            images_per_s=num_steps * config.batch_size / elapsed,
            wait_share=waited / elapsed,
        )


def markdown(report: dict[str, Any]) -> str:
    """What stands in the README: the ratios, the waits, then how they were measured."""
    lines = [
        "| stage | linear layers | ours | reference | ratio (lowest to highest) |",
        "|---|---|---:|---:|---|",
    ]
    for fields in report["rows"]:
        row = Row(**fields)
        rates = [f"{row.batch / seconds:.0f}/s" for seconds in (row.ours_s, row.reference_s)]
        low, high = row.spread
        ratio = f"**{row.ratio:.2f}** ({low:.2f} to {high:.2f})"
        lines.append(f"| {row.stage} | {row.kernels} | {' | '.join(rates)} | {ratio} |")
    lines += ["", "| data of stage 1 | images | steps wait for them |", "|---|---:|---:|"]
    for fields in report["waits"]:
        wait = Wait(**fields)
        lines.append(f"| {wait.data} | {wait.images_per_s:.0f}/s | {wait.wait_share:.1%} |")
    machine = report["hardware"]
    note = (
        f"Images per second, from medians of {report['rounds']} steps in turns; "
        f"{machine['processor']}, {machine['cores']} cores, one thread, torch "
        f"{report['versions']['torch']}, revision `{short_revision(report['revision'])}`."
    )
    return "\n".join(lines) + "\n\n" + note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="steps of each side")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows: list[Row] = []
    for contest in contests():
        for row in measure(contest, rounds):
            print(
                f"{row.stage:12} {row.kernels:8} {row.ours_s:7.3f} s  {row.reference_s:7.3f} s  "
                f"{row.ratio:5.2f}x",
                flush=True,
            )
            rows.append(row)
    with tempfile.TemporaryDirectory() as folder:
        waits = list(measure_waits(rounds, Path(folder)))
    for wait in waits:
        print(f"{wait.data:32} {wait.images_per_s:5.0f} images/s, waits {wait.wait_share:.1%}")
    report = {
        "revision": git_revision(),
        "hardware": hardware(),
        "versions": versions(),
        "rounds": rounds,
        "rows": [asdict(row) for row in rows],
        "waits": [asdict(wait) for wait in waits],
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_section("training", markdown(report))


if __name__ == "__main__":
    main()
