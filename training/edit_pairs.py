"""Edits listed in JSON lines: `{"source": path, "instruction": text, "target": path}`.

Paths are relative to the list's folder. Only the places of the lines are kept in memory.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.datasets import Collection, DataError, Indices, Sample, Skip
from training.image_files import SkippedError, read_picture
from training.image_folder import read_file
from training.shards import find_files

FIELDS = ("source", "instruction", "target")


def edit_sample(
    source: bytes, target: bytes, instructions: str | Sequence[Any] | None, rng: np.random.Generator
) -> Sample:
    """Source, target and one of the instructions.

    Raises:
        SkippedError: a picture cannot be used, or there is no instruction.
    """
    listed = [instructions] if isinstance(instructions, str) else list(instructions or ())
    texts = [text.strip() for text in listed if isinstance(text, str) and text.strip()]
    if not texts:
        raise SkippedError("no instruction")
    text = texts[int(rng.integers(len(texts)))]
    return Sample((read_picture(source), read_picture(target)), text)


class EditLines:
    """Edit pairs of one or several JSONL files, in any order.

    Raises:
        DataError: no such file, or one without lines.
    """

    def __init__(self, pattern: str) -> None:
        self._paths = find_files(pattern, ".jsonl")
        self._starts = [self._list(path) for path in self._paths]
        self.units = [str(path) for path in self._paths]
        self.lengths = self.blocks = [len(starts) for starts in self._starts]
        self.problems: list[Skip] = []

    @staticmethod
    def _list(path: Path) -> Indices:
        """Places in bytes of the lines that are not blank, (N,)."""
        starts, place = [], 0
        try:
            with path.open("rb") as file:
                for line in file:
                    if line.strip():
                        starts.append(place)
                    place += len(line)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        if not starts:
            raise DataError(f"{path} holds no edit")
        return np.asarray(starts, dtype=np.int64)

    def read(self, unit: int, index: int, rng: np.random.Generator) -> Sample:
        """Source, target and instruction."""
        path = self._paths[unit]
        try:
            with path.open("rb") as file:
                file.seek(int(self._starts[unit][index]))
                line = file.readline()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from None
        try:
            edit = json.loads(line)
        except ValueError:
            raise SkippedError("broken line") from None
        if not isinstance(edit, dict) or any(name not in edit for name in FIELDS):
            raise SkippedError("line without source, instruction and target")
        source, instruction, target = (edit[name] for name in FIELDS)
        if not (isinstance(source, str) and isinstance(target, str)):
            raise SkippedError("source or target is no path")
        pictures = [read_file(path.parent / name) for name in (source, target)]
        return edit_sample(pictures[0], pictures[1], instruction, rng)

    def sample_name(self, unit: int, index: int) -> str:
        """List and number of the edit in it, blank lines not counted."""
        return f"{self._paths[unit]}: edit {index + 1}"


class PairPictures:
    """Source and target of each edit as two samples, without a text."""

    def __init__(self, pairs: Collection) -> None:
        self._pairs = pairs
        self.units, self.problems = pairs.units, pairs.problems
        self.lengths = [2 * length for length in pairs.lengths]
        self.blocks = [2 * length for length in pairs.blocks]

    def read(self, unit: int, index: int, rng: np.random.Generator) -> Sample:
        """One picture of a pair; it is skipped where the pair is not whole."""
        return Sample((self._pairs.read(unit, index // 2, rng).pictures[index % 2],))

    def sample_name(self, unit: int, index: int) -> str:
        """That of the pair."""
        return self._pairs.sample_name(unit, index // 2)
