"""Where the jobs of a request stand, and the answer to it once they have ended."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence

from anyio import to_thread
from fastapi import Request
from starlette.responses import Response

from service.api.answer import Answer, AnswerPlan, Made
from service.api.images.answers import JSON_TYPE
from service.api.jobs.plans import plan_of
from service.api.jobs.schemas import ErrorObject, JobState, PictureProgress
from service.api.links import base_url, file_path, job_path
from service.api.outcomes import error_of
from service.api.state import Gateway
from service.errors import NotFound, ServiceError
from service.jobs.group import Group
from service.jobs.job import Job, Outcome, Status
from service.jobs.views import JobView

ID_PATTERN = "[0-9a-f]{32}"
_QUICK_BYTES = 2**16  # of files; an answer is built from them before a thread would have begun


async def find_group(gateway: Gateway, owner: str, job_id: str) -> Group:
    """The jobs of a request of this owner.

    Raises:
        NotFound: there are none, they have expired, or they are somebody else's.
    """
    group = await gateway.queue.group(job_id) if re.fullmatch(ID_PATTERN, job_id) else None
    if group is None or group.owner != owner:
        raise _no_job(job_id)
    return group


async def read_views(gateway: Gateway, group: Group) -> list[JobView]:
    """The jobs of a group.

    Raises:
        NotFound: they have expired.
    """
    views = [view for view in await gateway.queue.views(group.job_ids) if view is not None]
    if len(views) < len(group.job_ids):
        raise _no_job(group.id)
    return views


def status_of(statuses: Sequence[Status]) -> Status:
    """Of a request, by its jobs; a final one never changes again."""
    if Status.FAILED in statuses:
        return Status.FAILED
    if all(status.final for status in statuses):
        return Status.CANCELLED if Status.CANCELLED in statuses else Status.SUCCEEDED
    waiting = all(status is Status.QUEUED for status in statuses)
    return Status.QUEUED if waiting else Status.RUNNING


def failure_of(views: Sequence[JobView]) -> ServiceError | None:
    """What a client that waits gets for jobs that failed or were cancelled; None for others."""
    status = status_of([view.status for view in views])
    errors = (
        error_of(view.job.id, view.status, view.error) for view in views if view.status is status
    )
    return next(errors, None)


async def state_response(
    request: Request,
    gateway: Gateway,
    group: Group,
    status_code: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An answer with a request's state, see `read_state`."""
    state = await read_state(request, gateway, group)
    content = await to_thread.run_sync(state.model_dump_json)  # it may hold pictures
    return Response(content, status_code, headers, JSON_TYPE)


async def read_state(request: Request, gateway: Gateway, group: Group) -> JobState:
    """A request's state, with its result once it has one.

    Raises:
        NotFound: it has expired.
    """
    views = await read_views(gateway, group)
    status = status_of([view.status for view in views])
    failure = failure_of(views) if status is Status.FAILED else None
    state = JobState(
        id=group.id,
        task=views[0].job.task,
        status=status,
        created_at=int(group.created_at),
        expires_at=expiry_of(views),
        progress=[
            PictureProgress(status=view.status, step=view.step, num_steps=view.num_steps)
            for view in views
        ],
        error=ErrorObject(**failure.body.to_dict()) if failure else None,
    )
    if status is not Status.SUCCEEDED:
        return state
    result_url = f"{base_url(request, gateway.settings)}{job_path(group.id)}/result"
    state = state.model_copy(update={"result_url": result_url})
    if plan_of(group).media_type != JSON_TYPE:
        return state
    answer = await read_answer(request, gateway, group, views)
    result = await to_thread.run_sync(json.loads, answer.content)
    return state.model_copy(update={"result": result})


async def read_answer(
    request: Request, gateway: Gateway, group: Group, views: Sequence[JobView]
) -> Answer:
    """The answer to a request whose jobs have succeeded.

    Raises:
        NotFound: its results have expired.
    """
    outcomes = await asyncio.gather(*map(gateway.queue.outcome, group.job_ids))
    found = [outcome for outcome in outcomes if outcome is not None]
    if len(found) < len(views):
        raise _no_job(group.id)
    return await build_answer(request, gateway, group, [view.job for view in views], found)


async def build_answer(
    request: Request,
    gateway: Gateway,
    group: Group,
    jobs: Sequence[Job],
    outcomes: Sequence[Outcome],
) -> Answer:
    """The answer that the request asked for, built from what its jobs made.

    Raises:
        NotFound: its results have expired, where the answer is their addresses.
    """
    plan: AnswerPlan = plan_of(group)
    urls: list[str] = []
    expires_at = None
    if plan.links:
        base = base_url(request, gateway.settings)
        urls = [base + file_path(job.id) for job in jobs]
        expires_at = expiry_of(await read_views(gateway, group))
    made = Made(jobs, outcomes, group.created_at, urls, expires_at)
    if sum(map(len, made.outputs)) <= _QUICK_BYTES:
        return plan.build(made)
    return await to_thread.run_sync(plan.build, made)


def expiry_of(views: Sequence[JobView]) -> int | None:
    """Unix time in seconds at which the first of the jobs is forgotten; None while one goes on."""
    times = [view.expires_at for view in views if view.expires_at is not None]
    return int(min(times)) if len(times) == len(views) else None


def _no_job(job_id: str) -> NotFound:
    return NotFound(
        f"there is no job {job_id[:64]}: it never was here, is another key's, or has expired",
        code="job_not_found",
    )
