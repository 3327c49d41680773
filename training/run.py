"""One run's place on disk, its clock for checkpoints, and the results of the runs before it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.manifest import MANIFEST_NAME
from training.checkpoint import CheckpointError, latest_checkpoint, read_state
from training.config import RunConfig


class Run:
    """Directory `<root>/<name>` of a training run."""

    def __init__(self, root: Path, config: RunConfig) -> None:
        self.root = root
        self.config = config
        self.directory = root / config.name
        self._saved_at = time.monotonic()

    def is_due(self, steps_done: int) -> bool:
        """Whether to save now: at the end, and every checkpoint_every_s seconds."""
        elapsed = time.monotonic() - self._saved_at
        if steps_done < self.config.steps and elapsed < self.config.checkpoint_every_s:
            return False
        self._saved_at = time.monotonic()
        return True

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes from training this run meanwhile; ends with the process, too.

        A launcher that is killed may leave its workers behind, and these go on writing.

        Raises:
            CheckpointError: another process trains it.
        """
        try:
            import fcntl
        except ImportError:  # Windows: no such locks
            yield
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("w") as file:
            try:
                # A lock of this process alone: data workers that outlive it do not inherit it.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise CheckpointError(
                    f"another process is training {self.config.name} in {self.directory}: "
                    "wait for it or stop it"
                ) from None
            yield

    @property
    def finished(self) -> bool:
        """Whether the run's checkpoint holds its last step."""
        checkpoint = latest_checkpoint(self.directory)
        return checkpoint is not None and read_state(checkpoint)["step"] >= self.config.steps

    def before(self) -> Path:
        """Checkpoint of the run that this one starts from, or the folder of a bundle.

        Raises:
            CheckpointError: that run has no checkpoint yet.
        """
        assert self.config.after is not None
        checkpoint = latest_checkpoint(self.root / self.config.after)
        if checkpoint is None and (Path(self.config.after) / MANIFEST_NAME).is_file():
            return Path(self.config.after)
        if checkpoint is None:
            raise CheckpointError(
                f"{self.config.name} starts from {self.config.after}, which has no checkpoint in "
                f"{self.root}: run `rpiae train {self.config.after}` first"
            )
        return checkpoint
