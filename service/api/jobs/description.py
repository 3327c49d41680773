"""What `/docs` says of every endpoint that makes jobs: its further headers and its 202."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Header
from fastapi.params import Depends as DependsParameter

from service.api.idempotency import KEY_PATTERN
from service.api.jobs.schemas import JobState
from service.api.openapi import answers

_TEXT = {"schema": {"type": "string"}}
# Where a client goes on from an accepted job; the names are those of the endpoints' functions.
_NEXT = ("get_job", "get_job_result", "follow_job", "cancel_job")


async def _job_headers(
    prefer: Annotated[
        str | None,
        Header(
            alias="Prefer",
            description="`respond-async` answers 202 at once, with the job in `Location`.",
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="Makes the request safe to repeat: one with the same key and content gets "
            "the first one's answer, one with another content 409. 1 to 255 printable characters.",
            json_schema_extra={"pattern": f"^{KEY_PATTERN}$"},
        ),
    ] = None,
) -> None:
    """Declared for the description only: they are read where jobs are made."""


def takes_job_headers() -> DependsParameter:
    """Dependency of the endpoints that make jobs."""
    dependency: DependsParameter = Depends(_job_headers)
    return dependency


def job_answers(content: Mapping[str, Any]) -> dict[int | str, dict[str, Any]]:
    """`responses` of an endpoint that makes jobs, see `answers`."""
    described = answers(content)
    described[200]["headers"] = {
        "x-rpiae-job": {"description": "Id of the job, for `/v1/jobs`.", **_TEXT},
        "Idempotent-Replayed": {
            "description": "`true` if this repeats an earlier answer.",
            **_TEXT,
        },
    }
    described[202] = {
        "model": JobState,
        "description": "Accepted: the job that will have the answer.",
        "headers": {
            "Location": {"description": "Path of the job.", **_TEXT},
            "Preference-Applied": {"description": "`respond-async`.", **_TEXT},
        },
        "links": {
            name: {"operationId": name, "parameters": {"job_id": "$response.body#/id"}}
            for name in _NEXT
        },
    }
    return described
