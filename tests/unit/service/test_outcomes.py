"""What metrics count a request as, by the status of its answer."""

from typing import get_args

import pytest

from service.api.outcomes import Outcome, outcome_of

STATUSES: dict[str, tuple[int, ...]] = {
    "ok": (200, 202),
    "client_error": (400, 401, 404, 408, 409, 413, 415, 422),
    "rejected": (429,),
    "cancelled": (499,),
    "expired": (504,),
    "failed": (500, 502),
    "unavailable": (503,),
}


@pytest.mark.parametrize(
    ("status", "outcome"), [(status, name) for name, all_ in STATUSES.items() for status in all_]
)
def test_by_status(status: int, outcome: str) -> None:
    assert outcome_of(status, limited=False) == outcome


def test_the_callers_own_limits_are_told_from_a_full_queue() -> None:
    assert outcome_of(429, limited=True) == "limited"
    assert {*STATUSES, "limited"} == set(get_args(Outcome))
