"""A run's record: JSON lines, tensorboard curves, sample grids, a progress bar."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SAMPLES_FOLDER = "samples"


class RunLog:
    """Context manager around a training loop; averages what is logged over `every` steps."""

    def __init__(
        self, directory: Path, name: str, num_steps: int, every: int = 20, first_step: int = 0
    ) -> None:
        """Goes on after `first_step` steps; what a killed run logged beyond them is dropped."""
        directory.mkdir(parents=True, exist_ok=True)
        _drop_after(directory / "curves.jsonl", first_step)
        self._file = (directory / "curves.jsonl").open("a", encoding="utf-8")
        self._first_step = first_step
        self._directory = directory
        self._name, self._num_steps, self._every = name, num_steps, every
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._count = 0
        self._since = time.perf_counter()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            refresh_per_second=1,
        )

    def __enter__(self) -> Self:
        from torch.utils.tensorboard import SummaryWriter

        again = self._first_step + 1  # tensorboard hides what was logged from there on before
        self._writer = SummaryWriter(str(self._directory / "tensorboard"), purge_step=again)
        self._progress.start()
        self._task = self._progress.add_task(
            self._name, total=self._num_steps, completed=self._first_step, note=""
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        self._writer.close()
        self._file.close()

    def step(self, step: int, num_samples: int, **values: float) -> None:
        """Record one step's numbers; `step` counts from 0."""
        for key, value in values.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
            self._counts[key] = self._counts.get(key, 0) + 1
        self._count += 1
        if (step + 1) % self._every and step + 1 < self._num_steps:
            return
        means = {key: total / self._counts[key] for key, total in self._sums.items()}
        elapsed = time.perf_counter() - self._since
        means["samples_per_s"] = self._count * num_samples / elapsed
        self._file.write(json.dumps({"step": step + 1, **means}) + "\n")
        self._file.flush()
        for key, value in means.items():
            self._writer.add_scalar(key, value, step + 1)
        note = " ".join(f"{key} {value:.4g}" for key, value in means.items())
        self._progress.update(self._task, completed=step + 1, note=note)
        self._sums, self._counts, self._count = {}, {}, 0
        self._since = time.perf_counter()

    def grid(self, num_steps: int, image: Image.Image) -> None:
        """Record what the run paints after `num_steps` steps: `samples/step-<number>.png`."""
        folder = self._directory / SAMPLES_FOLDER
        folder.mkdir(exist_ok=True)
        image.save(folder / f"step-{num_steps:07}.png", optimize=True)
        self._writer.add_image("samples", np.asarray(image), num_steps, dataformats="HWC")


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines of a curve up to a step; the last one may have been cut short by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(path)
