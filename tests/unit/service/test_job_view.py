"""What is told of a job from its stored record and its newest events."""

import json
import time
from typing import Any

import pytest

from service.errors import ErrorBody
from service.jobs.job import LATE, EncodeParams, GenerateParams, Job, Params
from service.jobs.views import JobView

ERROR = ErrorBody("broken", code="job_failed")


def view(
    *events: tuple[str, dict[str, Any]],
    status: str,
    params: Params | None = None,
    deadline_at: float | None = None,
    **stored: str,
) -> JobView:
    """The view of a job whose events, oldest first, are these."""
    job = Job(
        id="j",
        task="encode" if isinstance(params, EncodeParams) else "generate",
        model="m",
        params=params or GenerateParams(prompt="a", seed=0, steps=9, guidance_scale=1),
        created_at=0.0,
        deadline_at=deadline_at,
    )
    fields = {**job.to_fields(), "status": status, **stored}
    return JobView.from_stored(
        {name.encode(): text.encode() for name, text in fields.items()},
        [
            (b"1-0", {b"kind": kind.encode(), b"data": json.dumps(data).encode()})
            for kind, data in reversed(events)
        ],
    )


STARTED = ("started", {"num_deliveries": 1})
STEP = ("progress", {"step": 4, "num_steps": 9})
PREVIEW = ("preview", {"index": 0, "step": 5, "num_steps": 9})


@pytest.mark.parametrize(
    ("events", "status", "step"),
    [
        ([], "queued", 0),
        ([STARTED], "running", 0),
        ([STARTED, STEP], "running", 4),
        ([STARTED, STEP, PREVIEW], "running", 5),
        ([STARTED, STEP, ("cancelled", {})], "cancelled", 4),
        ([STARTED, STEP, ("queued", {})], "queued", 0),  # given back
        ([STARTED, STEP, STARTED], "running", 0),  # another worker began anew
    ],
)
def test_steps(events, status, step):
    seen = view(*events, status=status, expires_ms="1500")
    assert (seen.status, seen.step, seen.num_steps) == (status, step, 9)


def test_what_has_ended():
    seen = view(status="succeeded", expires_ms="1500")
    assert (seen.step, seen.num_steps, seen.expires_at, seen.error) == (9, 9, 1.5, None)
    seen = view(status="succeeded", params=EncodeParams(), expires_ms="1500")
    assert (seen.step, seen.num_steps) == (1, 1)
    failed = json.dumps(ERROR.to_dict())
    seen = view(status="failed", expires_ms="1500", error=failed)
    assert (seen.expires_at, seen.error) == (1.5, ERROR)


def test_a_job_that_was_put_back_after_its_end():
    failed = json.dumps(ERROR.to_dict())
    seen = view(status="queued", expires_ms="1500", error=failed)
    assert (seen.status, seen.expires_at, seen.error) == ("queued", None, None)


def test_deadlines():
    late, early = time.time() - 1, time.time() + 60
    seen = view(status="queued", deadline_at=late)
    assert (seen.status, seen.error, seen.expires_at) == ("failed", LATE, None)
    assert view(status="queued", deadline_at=early).status == "queued"
    # One that runs is ended by its worker, if that lives.
    assert view(status="running", deadline_at=late).status == "running"
    seen = view(STARTED, STEP, status="running", deadline_at=late - 60)
    assert (seen.status, seen.error, seen.step) == ("failed", LATE, 4)
    seen = view(status="succeeded", deadline_at=late - 60, expires_ms="1500")
    assert (seen.status, seen.error) == ("succeeded", None)
