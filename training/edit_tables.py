"""Edit pairs in parquet files, one row group in memory at a time. Needs pyarrow.

Layout of OmniEdit: `src_img` and `edited_img`, each a struct with the file's `bytes`, and
`edited_prompt_list`, the instruction in several wordings.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from training.datasets import NUM_LANES, DataError, Sample, Skip
from training.edit_pairs import edit_sample
from training.image_files import SkippedError
from training.shards import find_files


class EditTables:
    """Edit pairs of parquet files; columns are given as (source, target, instruction).

    A worker keeps the row groups that its batches come from by turns: 1 + NUM_LANES / workers.
    Files with row groups of some hundred rows therefore fit in memory, whatever their size.

    Raises:
        DataError: a file is missing, is no parquet file, lacks a column or has no rows.
    """

    def __init__(
        self, pattern: str, columns: tuple[str, str, str], *, num_workers: int = NUM_LANES
    ) -> None:
        self._paths, self._columns = find_files(pattern, ".parquet"), columns
        self._num_kept = 1 + -(-NUM_LANES // max(1, num_workers))
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()
        groups = [self._list(path) for path in self._paths]
        self._ends = [np.cumsum(lengths) for lengths in groups]
        self.units = [str(path) for path in self._paths]
        self.lengths = [sum(lengths) for lengths in groups]
        self.blocks = [length for lengths in groups for length in lengths]
        self.problems: list[Skip] = []

    def _list(self, path: Path) -> list[int]:
        """Rows of each row group."""
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                names = file.schema_arrow.names
                meta = file.metadata
                lengths = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        except (OSError, pyarrow.ArrowException) as error:
            raise DataError(f"{path} cannot be read as a parquet file: {error}") from None
        missing = [name for name in self._columns if name not in names]
        if missing:
            raise DataError(
                f"{path} has no column {', '.join(missing)}; there are {', '.join(names)}: set "
                "data.columns=SOURCE,TARGET,INSTRUCTION"
            )
        if not sum(lengths):
            raise DataError(f"{path} holds no rows")
        return lengths

    def _rows(self, unit: int, group: int) -> Any:
        key = (unit, group)
        if key not in self._kept:
            path = self._paths[unit]
            try:
                # Opened anew for each row group: an open file must not be shared by a fork.
                with pyarrow.parquet.ParquetFile(path) as file:
                    rows = file.read_row_group(group, columns=list(self._columns))
            except FileNotFoundError:
                raise DataError(f"{path} is gone: put it back") from None
            except (OSError, pyarrow.ArrowException):
                raise SkippedError("row group cannot be read") from None
            self._kept[key] = rows
            if len(self._kept) > self._num_kept:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def read(self, unit: int, index: int, rng: np.random.Generator) -> Sample:
        """Source, target and one of the row's instructions."""
        ends = self._ends[unit]
        group = int(np.searchsorted(ends, index, side="right"))
        row = index - (int(ends[group - 1]) if group else 0)
        rows = self._rows(unit, group)
        source, target, instruction = (rows[name][row].as_py() for name in self._columns)
        return edit_sample(_file_bytes(source), _file_bytes(target), instruction, rng)

    def sample_name(self, unit: int, index: int) -> str:
        """File and row."""
        return f"{self._paths[unit]}: row {index}"


def _file_bytes(cell: Any) -> bytes:
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise SkippedError("no image")
    return data
