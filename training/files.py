"""A run's files: the same as when it began, and a list of what could not be used."""

from collections.abc import Callable, Sequence
from pathlib import Path

from training.checkpoint import latest_checkpoint
from training.data_config import DataConfig
from training.datasets import Batch, Batches, BatchLoader, Collection
from training.image_source import SKIP_LIST, SkipList, check_unchanged, write_record
from training.transforms import Framing

RowsOfStep = Sequence[int] | Callable[[int], Sequence[int]]


class Files:
    """One collection that a run trains on.

    `<name>.json` in the run's directory says what it held when the run began; `skipped-<name>-*`
    lists what each process could not use.
    """

    def __init__(
        self,
        collection: Collection,
        data: DataConfig,
        image_size: int,
        *,
        directory: Path,
        name: str,
        rank: int,
    ) -> None:
        """Checks the record, or writes it where the run has no checkpoint yet.

        Raises:
            DataError: the data changed since the run began.
        """
        self.collection = collection
        self._framing = Framing(rule=data.crop, image_size=image_size)
        self._num_workers = data.num_workers
        record = directory / f"{name}.json"
        skip_list = directory / SKIP_LIST.format(f"{name}-{rank}")
        if latest_checkpoint(directory) is None:  # what an earlier attempt left is of no use
            skip_list.unlink(missing_ok=True)
            write_record(record, collection)
        check_unchanged(record, collection)
        self._skips = SkipList(skip_list)
        self._skips.add(collection.problems)

    def reader(
        self,
        *,
        seed: int,
        stream: str,
        batch_size: int,
        num_steps: int,
        rows: RowsOfStep | None = None,
    ) -> Callable[[int], Batch]:
        """Function that gives the batch of a step; see `Batches`."""
        loader = BatchLoader(
            Batches(
                self.collection,
                self._framing,
                seed=seed,
                stream=stream,
                batch_size=batch_size,
                rows=rows,
            ),
            num_steps=num_steps,
            num_workers=self._num_workers,
        )

        def read(step: int) -> Batch:
            batch = loader.batch(step)
            self._skips.add(batch.skips)
            return batch

        return read
