"""What things cost: the numbers that a simulation is made of.

Each is measured (`benchmarks.queue_costs`, `benchmarks.simulation.calibration`) or, where it cannot
be measured here, an assumption that the report states.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class RedisCosts:
    """Seconds of the server's one thread for each command, with its share of reading and writing.

    put: of a job with its group; call: beyond that, a worker that waits is told of it; take: one
    that hands out one job; take_empty: one that finds nothing; wait: before that, a worker waits in
    vain; finish: with a picture; look: a gateway reads an outcome; wake: one blocked gateway is
    told of one end; publish, publish_event: progress, and each job of it; renew, renew_job;
    announce; list, list_worker: a gateway reads what workers announced; heed: a worker looks for
    cancellations.
    """

    put: float
    call: float
    take: float
    take_empty: float
    wait: float
    finish: float
    look: float
    wake: float
    publish: float
    publish_event: float
    renew: float
    renew_job: float
    announce: float
    list: float
    list_worker: float
    heed: float

    @classmethod
    def from_microseconds(cls, measured: Mapping[str, float]) -> Self:
        """From a report's numbers.

        Raises:
            ValueError: names the costs that are missing or not known.
        """
        wanted = set(cls.__dataclass_fields__)
        if set(measured) != wanted:
            raise ValueError(f"expected the costs {sorted(wanted)}, got {sorted(measured)}")
        return cls(**{name: 1e-6 * value for name, value in measured.items()})

    @property
    def per_job(self) -> float:
        """Seconds for one job: put, taken, finished, read by one gateway."""
        return self.put + self.take + self.finish + self.wake + self.look


@dataclass(frozen=True, kw_only=True)
class GatewayCosts:
    """Seconds of one gateway process.

    before: from a request to its `put`; after: from an outcome to the answer; list_worker: to read
    what one worker announced; end: to hear of the end of a job, its own or another's.
    """

    before: float
    after: float
    list_worker: float = 0.0
    end: float = 0.0

    @property
    def per_request(self) -> float:
        """Seconds for one request."""
        return self.before + self.after


@dataclass(frozen=True, kw_only=True)
class Device:
    """One worker and its model.

    step_s: (rows, seconds) of a step with all that goes on beside it, ascending; max_rows: of one
    step; prefill_s: of one model row of a new picture; decode_s: of one picture; compress_s: its
    file, beside the steps; react_s: the worker's loop between a message and what it does about it;
    start_s: until a new one is ready, for autoscaling and after a death.
    """

    name: str
    step_s: tuple[tuple[int, float], ...]
    max_rows: int = 16
    prefill_s: float = 0.0
    decode_s: float = 0.0
    compress_s: float = 0.0
    react_s: float = 0.0
    start_s: float = 30.0
    table: tuple[float, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        if not self.step_s or list(self.step_s) != sorted(self.step_s):
            raise ValueError(f"step_s of {self.name} must be ascending and not empty")
        if self.max_rows < 3:
            raise ValueError(f"max_rows must fit one guided edit (3 rows), got {self.max_rows}")
        rows = range(self.max_rows + 1)
        object.__setattr__(self, "table", tuple(_interpolate(self.step_s, count) for count in rows))

    def pictures_per_s(self, steps: Sequence[int], rows: int = 2) -> float:
        """When full of pictures with so many steps, each equally often."""
        at_once = self.max_rows // rows
        step_s = self.table[at_once * rows]
        beside_s = rows * self.prefill_s + self.decode_s
        return 1 / (sum(steps) / len(steps) * step_s / at_once + beside_s)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Everything beside the workers' devices.

    hop_s: one way over the network between two processes; client_s: what a client needs beside the
    gateway.
    """

    redis: RedisCosts
    gateway: GatewayCosts
    hop_s: float
    client_s: float = 0.0

    @classmethod
    def from_report(cls, redis_us: Mapping[str, float], gateway: Mapping[str, Any]) -> Self:
        """From the microseconds of the queue's report and the seconds of a calibration."""
        return cls(
            redis=RedisCosts.from_microseconds(redis_us),
            gateway=GatewayCosts(**gateway["gateway"]),
            hop_s=gateway["hop_s"],
            client_s=gateway["client_s"],
        )


def _interpolate(points: Sequence[tuple[int, float]], rows: int) -> float:
    """Between two sizes in proportion; below the first like it, above the last by its rate."""
    sizes = [size for size, _ in points]
    place = bisect_left(sizes, rows)
    if place == 0:
        return points[0][1]
    if place == len(points):
        size, seconds = points[-1]
        return seconds * rows / size
    (low, low_s), (high, high_s) = points[place - 1], points[place]
    share = (rows - low) / (high - low)
    return (1 - share) * low_s + share * high_s
