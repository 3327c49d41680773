"""Requests that make jobs: answered once those have ended, or at once with where they stand."""

from fastapi import Request
from starlette.responses import Response

from service.api.disconnect import unless_disconnected
from service.api.job_group import JobGroup
from service.api.jobs.state import build_answer, state_response
from service.api.links import job_path
from service.api.state import Gateway


async def respond(
    request: Request, gateway: Gateway, group: JobGroup, payload: bytes | None
) -> Response:
    """Put the jobs of a request and answer it.

    With `Prefer: respond-async` the answer is 202 and the job; a client that waits gets the
    results, and one that leaves cancels them unless it can come back for them.

    Raises:
        ServiceError: the jobs were refused, or came to nothing.
    """
    async with group, group.expected():
        await group.put(payload)
        if group.asynchronous:
            headers = {
                "location": job_path(group.stored.id),
                "preference-applied": "respond-async",
            }
            return await state_response(request, gateway, group.stored, 202, headers)
        with gateway.tracing.span("wait"):
            outcomes = await unless_disconnected(request, group.outcomes())
    with gateway.tracing.span("answer"):
        answer = await build_answer(request, gateway, group.stored, group.jobs, outcomes)
    return Response(answer.content, media_type=answer.media_type, headers=answer.headers)
