"""`/v1/jobs`: requests by their id, wherever they came in: state, result, events, cancellation."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response

from service.api.auth import OwnerDep
from service.api.images.answers import JSON_TYPE
from service.api.jobs.cursors import CURSORS_PATTERN, Cursors
from service.api.jobs.events import JobEventStream
from service.api.jobs.schemas import JobState
from service.api.jobs.state import (
    ID_PATTERN,
    failure_of,
    find_group,
    read_answer,
    read_views,
    state_response,
    status_of,
)
from service.api.latents.formats import TENSOR_TYPES
from service.api.negotiation import IMAGE_TYPES
from service.api.openapi import BINARY, answers
from service.api.state import GatewayDep
from service.errors import Conflict
from service.jobs.job import Status

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_RETRY_AFTER_S = 1.0

JobId = Annotated[
    str,
    Path(
        description="As in the header `x-rpiae-job` of an answer.",
        json_schema_extra={"pattern": f"^{ID_PATTERN}$"},
    ),
]


@router.get("/{job_id}", operation_id="get_job", response_model=JobState, responses=answers({}))
async def get_job(
    request: Request, gateway: GatewayDep, owner: OwnerDep, job_id: JobId
) -> Response:
    """Where a request stands, and its result once it has one.

    Every answer of a POST names its job in the header `x-rpiae-job`. Jobs belong to the key that
    made them, and are forgotten some time after they ended (`expires_at`).
    """
    group = await find_group(gateway, owner, job_id)
    return await state_response(request, gateway, group)


@router.get(
    "/{job_id}/result",
    operation_id="get_job_result",
    response_class=Response,
    responses=answers({**dict.fromkeys((*IMAGE_TYPES, *TENSOR_TYPES), BINARY), JSON_TYPE: {}}),
)
async def get_job_result(
    request: Request, gateway: GatewayDep, owner: OwnerDep, job_id: JobId
) -> Response:
    """What a client that waits would have got: its type is what the request's `Accept` asked for.

    A job that failed or was cancelled answers with that error; one that has not ended with 409.
    """
    group = await find_group(gateway, owner, job_id)
    views = await read_views(gateway, group)
    if failure := failure_of(views):
        raise failure
    if status_of([view.status for view in views]) is not Status.SUCCEEDED:
        raise Conflict(
            f"job {group.id} has not ended: ask again later, or follow its events",
            code="job_not_finished",
            retry_after_s=_RETRY_AFTER_S,
        )
    answer = await read_answer(request, gateway, group, views)
    return Response(answer.content, media_type=answer.media_type, headers=answer.headers)


@router.get(
    "/{job_id}/events",
    operation_id="follow_job",
    response_class=Response,
    responses={
        **answers({"text/event-stream": {}}),
        204: {"description": "That was the last event: there is nothing to come back for."},
    },
)
async def follow_job(
    gateway: GatewayDep,
    owner: OwnerDep,
    job_id: JobId,
    last_event_id: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            description="Id of the last event that the client has seen.",
            json_schema_extra={"pattern": f"^({CURSORS_PATTERN})?$"},
        ),
    ] = None,
    last_event_id_query: Annotated[
        str | None,
        Query(
            alias="last_event_id",
            description="The same, for a client that cannot send the header at first.",
            json_schema_extra={"pattern": f"^({CURSORS_PATTERN})?$"},
        ),
    ] = None,
) -> Response:
    """Server-sent events of a request from its beginning, or after `Last-Event-ID`, to its end.

    `queued`, `started`, `progress` (`step`, `num_steps`), `preview` (`b64_json`,
    `partial_image_index`), and at the end of each picture `succeeded`, `failed` (`error`) or
    `cancelled`, with `done` true when the whole request has ended. `index` is the picture. A job
    whose worker died starts anew, and so do its events.
    """
    group = await find_group(gateway, owner, job_id)
    await read_views(gateway, group)
    given = [text for text in (last_event_id, last_event_id_query) if text]
    cursors, *_ = [Cursors.parse(text, len(group.job_ids)) for text in given or [""]]
    return Response(status_code=204) if cursors.at_end else JobEventStream(gateway, group, cursors)


@router.delete(
    "/{job_id}", operation_id="cancel_job", response_model=JobState, responses=answers({})
)
async def cancel_job(
    request: Request, gateway: GatewayDep, owner: OwnerDep, job_id: JobId
) -> Response:
    """Cancel what of a request has not ended. What runs ends within a denoising step.

    May be repeated; a request that has ended stays as it is.
    """
    group = await find_group(gateway, owner, job_id)
    for each in group.job_ids:
        await gateway.queue.cancel(each)
    return await state_response(request, gateway, group)
