"""The arrivals that every server gets: arrivals.csv, at a rate of one request in a second.

    python -m benchmarks.peers.arrivals     writes the file again

Poisson, with a task and a number of steps drawn for each. A load of r requests in a second takes
the file r times as fast.
"""

import csv
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.serving_load import (
    MIXED_TASKS,
    Planned,
    Task,
    plan_requests,
    poisson_arrivals,
)

PATH = Path(__file__).with_name("arrivals.csv")
STEPS = (10, 25, 50)
SEED = 8
SECONDS = 2000.0
_BLOCK, _NUM_BLOCKS = 60, 20
_FIELDS = ("at_s", "task", "steps", "seed")


def make_arrivals() -> list[Planned]:
    """What the file holds; times to the millisecond."""
    source = random.Random(SEED)
    times = [round(at_s, 3) for at_s in poisson_arrivals(1.0, SECONDS, source)]
    return plan_requests(times, STEPS, MIXED_TASKS, source)


def balanced_plan() -> list[Planned]:
    """Requests for those who send one after the other: in every 60 the exact shares of the mix.

    So the rate of a few seconds does not depend on which requests happened to be in them.
    """
    block: list[tuple[Task, int]] = [
        (task, steps)
        for task, share in MIXED_TASKS.items()
        for steps in STEPS
        for _ in range(round(share * _BLOCK / len(STEPS)))
    ]
    source = random.Random(SEED)
    order = [one for _ in range(_NUM_BLOCKS) for one in source.sample(block, len(block))]
    return [
        Planned(at_s=0.0, task=task, steps=steps, seed=seed)
        for seed, (task, steps) in enumerate(order)
    ]


def write_arrivals(path: Path, arrivals: Sequence[Planned]) -> None:
    """One line for each."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.DictWriter(file, _FIELDS, lineterminator="\n")
        rows.writeheader()
        rows.writerows(vars(one) for one in arrivals)


def read_arrivals(path: Path = PATH) -> list[Planned]:
    """The committed arrivals."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Planned(
                at_s=float(row["at_s"]),
                task=row["task"],  # type: ignore[arg-type]
                steps=int(row["steps"]),
                seed=int(row["seed"]),
            )
            for row in csv.DictReader(file)
        ]


def at_rate(arrivals: Sequence[Planned], per_s: float, seconds: float) -> list[Planned]:
    """Those of the first `seconds` at another rate.

    Raises:
        ValueError: there are not as many.
    """
    if arrivals[-1].at_s < per_s * seconds:
        raise ValueError(
            f"{len(arrivals)} arrivals do not last {seconds:g} s at {per_s:g} in a second"
        )
    return [replace(one, at_s=one.at_s / per_s) for one in arrivals if one.at_s < per_s * seconds]


if __name__ == "__main__":
    write_arrivals(PATH, make_arrivals())
