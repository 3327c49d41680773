"""A worker that batches in another way, or runs on an emulated device, to compare with.

    python -m benchmarks.serving_worker --policy request-level [--step-s 0.02 --row-s 0.0002]

The policies: `continuous` is the service's own. `request-level` forms a batch from what waits, runs
it until all of it is done, answers all of it then, and forms the next, as one call of a pipeline
for each batch does. `request-level-early` answers each picture as soon as its own steps are done
and spends no time on it any more, but lets nobody in before the batch is over.

With --step-s the fake backend takes that long for a step, and --row-s more for each row.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from benchmarks.emulation import emulated_backend
from models.manifest import Manifest
from service import loading, worker, worker_process
from service.choosing import Choice
from service.engine import engine
from service.engine.scheduler import DenoiseJob, Scheduler
from service.settings import Settings, load_settings

POLICIES = ("continuous", "request-level", "request-level-early")

J = TypeVar("J", bound=DenoiseJob)


class RequestLevelScheduler(Scheduler[J]):
    """A batch is formed from what waits and runs until all of it is done; then the next."""

    answers_early = False

    def __init__(self, max_rows: int) -> None:
        super().__init__(max_rows)
        self._batch: set[str] = set()
        self._done: list[J] = []

    @property
    def is_empty(self) -> bool:
        return super().is_empty and not self._done

    def next_batch(self) -> list[J]:
        """What is left of the batch, or a new one."""
        running = [job for job in self if job.id in self._batch]
        if not running:
            running = super().next_batch()
            self._batch = {job.id for job in running}
        return running

    def advance(self, batch: Iterable[J]) -> list[J]:
        """Those that are answered now."""
        self._done += super().advance(batch)
        if not self.answers_early and any(job.id in self._batch for job in self):
            return []
        done, self._done = self._done, []
        return done


class EarlyRequestLevelScheduler(RequestLevelScheduler[J]):
    """As above, but who is done is answered at once."""

    answers_early = True


class RequestLevelEngine(engine.Engine):
    """Asks for the jobs of a second batch while the first one runs."""

    @property
    def max_rows(self) -> int:
        return 2 * super().max_rows


def apply_policy(policy: str) -> None:
    """Make the workers of this process batch like that.

    Raises:
        ValueError: there is no such policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}, expected one of {POLICIES}")
    if policy == "continuous":
        return
    early = policy == "request-level-early"
    engine.Scheduler = EarlyRequestLevelScheduler if early else RequestLevelScheduler  # type: ignore[misc]
    worker.Engine = RequestLevelEngine  # type: ignore[misc]


def emulate_device(step_s: float, row_s: float) -> None:
    """Make the workers of this process run on a fake device with those step times."""

    def load_backend(
        settings: Settings, _directory: Path, manifest: Manifest, _index: int = 0
    ) -> Choice:
        assert settings.max_rows is not None
        return Choice(emulated_backend(manifest, settings.max_rows, step_s, row_s))

    loading.load_backend = load_backend


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", choices=POLICIES, default=POLICIES[0])
    parser.add_argument("--step-s", type=float, help="emulate a device: seconds of a step")
    parser.add_argument("--row-s", type=float, default=0.0, help="and of each of its rows")
    arguments = parser.parse_args()
    apply_policy(arguments.policy)
    if arguments.step_s is not None:
        emulate_device(arguments.step_s, arguments.row_s)
    worker_process.run_worker(load_settings())


if __name__ == "__main__":
    main()
