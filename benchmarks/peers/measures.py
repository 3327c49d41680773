"""What is reckoned from a load's answers."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.serving_load import Planned, Sample, percentile, slope

SLO_FACTOR = 3.0
_FEW = 8
_PICTURES = ("generate", "edit")


def solo_key(planned: Planned) -> str:
    """Pictures of one key take as long when they are alone."""
    return f"{planned.task} {planned.steps}"


def attainment(samples: Sequence[Sample], solo_s: Mapping[str, float]) -> float:
    """Share of the pictures that came within SLO_FACTOR times what they take alone.

    Encode and decode, which take next to nothing alone, are not counted.
    """
    pictures = [one for one in samples if one.planned.task in _PICTURES]
    if not pictures:
        raise ValueError("needs at least one picture")
    return statistics.mean(
        one.status == 200 and one.latency_s <= SLO_FACTOR * solo_s[solo_key(one.planned)]
        for one in pictures
    )


def rate(samples: Sequence[Sample], begin_s: float, end_s: float) -> float:
    """Answers in a second between two times of the load.

    The slope of their number over time: servers that answer a whole batch at once would otherwise
    gain or lose by where the time ends. Where they do not spread over half of it, their number.
    """
    if not begin_s < end_s:
        raise ValueError(f"begin_s must be below end_s, got {begin_s} and {end_s}")
    ends = [one.planned.at_s + one.latency_s for one in samples if one.status == 200]
    ends = sorted(end for end in ends if begin_s <= end < end_s)
    if len(ends) < _FEW or ends[-1] - ends[0] < (end_s - begin_s) / 2:
        return len(ends) / (end_s - begin_s)
    return slope(ends, range(len(ends)))[0]


def summary(
    samples: Sequence[Sample],
    seconds: float,
    warm_s: float,
    solo_s: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Of one load of so many seconds, the first `warm_s` of which do not count.

    per_s: answers in a second while the load lasted; given_up: requests without an answer when
    waiting for them ended, or whose connection broke: their latency is at least what is counted;
    failed: another status than 200. Latencies in seconds, those that were given up included.
    """
    counted = [one for one in samples if one.planned.at_s >= warm_s] or list(samples)
    latencies = [one.latency_s for one in counted]
    found = {
        "requests": len(counted),
        "given_up": sum(one.status == 0 for one in counted),
        "failed": sum(one.status not in (0, 200) for one in counted),
        "per_s": rate(samples, warm_s, seconds),
        "mean_s": statistics.mean(latencies),
        "p50_s": percentile(latencies, 0.5),
        "p95_s": percentile(latencies, 0.95),
        "p99_s": percentile(latencies, 0.99),
        "late_p99_s": percentile([one.late_s for one in counted], 0.99),
    }
    if solo_s is not None:
        found["slo"] = attainment(counted, solo_s)
    return found


def median_of(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    """Of the repeats."""
    return statistics.median(float(run[key]) for run in runs)
