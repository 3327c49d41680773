"""The jobs of a checked request: one for each picture, or one batch of latents."""

import secrets
import time
from collections.abc import Sequence
from functools import partial

from fastapi import Request

from models.manifest import Manifest, Task
from service.api.answer import AnswerPlan
from service.api.cost import row_steps
from service.api.idempotency import Content, fingerprint, idempotency_key
from service.api.job_group import JobGroup
from service.api.negotiation import prefers_async
from service.api.request_context import context_of
from service.api.state import Gateway
from service.errors import InvalidRequest
from service.jobs.group import Group
from service.jobs.job import Job, Params, Priority


def make_jobs(
    request: Request,
    gateway: Gateway,
    owner: str,
    *,
    task: Task,
    params: Sequence[Params],
    plan: AnswerPlan,
    content: Content,
    priority: Priority = "interactive",
    deadline_ms: int | None = None,
) -> JobGroup:
    """One job for each element of `params`, with the request's identity and deadline.

    Args:
        plan: how to answer when they have ended.
        content: what the request asks for, by which a repeat of it is known: JSON and file bytes.

    Raises:
        InvalidRequest: the model has no such task, the deadline is beyond the service's limit, or
            the idempotency key is malformed.
    """
    manifest = gateway.manifest
    require_task(manifest, task)
    asynchronous = prefers_async(request)
    timeout_s = _timeout_s(gateway, deadline_ms, asynchronous=asynchronous)
    context = context_of(request)
    now = time.time()
    jobs = [
        Job(
            id=secrets.token_hex(16),
            task=task,
            model=manifest.name,
            params=each,
            priority=priority,
            created_at=now,
            deadline_at=now + timeout_s,
            owner=owner,
            row_steps=row_steps(each, manifest),
            request_id=context.id,
            traceparent=context.traceparent,
        )
        for each in params
    ]
    stored = Group(
        id=secrets.token_hex(16),
        owner=owner,
        job_ids=tuple(job.id for job in jobs),
        created_at=now,
        answer=plan.model_dump(mode="json"),
        idempotency_key=idempotency_key(request),
    )
    return JobGroup(
        gateway,
        context,
        jobs,
        stored,
        fingerprint=partial(fingerprint, request.url.path, content),
        asynchronous=asynchronous,
        has_deadline=deadline_ms is not None,
    )


def require_task(manifest: Manifest, task: Task) -> None:
    """Refuse a task that the model was not made for.

    Raises:
        InvalidRequest: 422 `unsupported_task`, naming the tasks that it has.
    """
    if task not in manifest.tasks:
        raise InvalidRequest(
            f"{manifest.name} has no task {task}, it has {', '.join(manifest.tasks)}",
            status=422,
            param="model",
            code="unsupported_task",
        )


def _timeout_s(gateway: Gateway, deadline_ms: int | None, *, asynchronous: bool) -> float:
    settings = gateway.settings
    limit_s = settings.async_timeout_s if asynchronous else settings.request_timeout_s
    if deadline_ms is None:
        return limit_s
    if deadline_ms > 1000 * limit_s:
        more = "" if asynchronous else ", or more with the header Prefer: respond-async"
        raise InvalidRequest(
            f"deadline_ms is {deadline_ms}: the service allows at most "
            f"{round(1000 * limit_s)}{more}",
            status=422,
            param="deadline_ms",
            code="invalid_value",
        )
    return deadline_ms / 1000
