"""`/v1/files`: the pictures of requests with `response_format: url`."""

import re
import time
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from service.api.auth import OwnerDep
from service.api.jobs.state import ID_PATTERN
from service.api.openapi import BINARY, answers
from service.api.state import Gateway, GatewayDep
from service.errors import NotFound
from service.jobs.job import GenerateParams, Status
from service.jobs.views import JobView

router = APIRouter(prefix="/v1/files", tags=["files"])

FileId = Annotated[
    str,
    Path(
        description="The last part of a picture's `url`.",
        json_schema_extra={"pattern": f"^{ID_PATTERN}$"},
    ),
]
_PICTURES = dict.fromkeys(("image/png", "image/jpeg", "image/webp"), BINARY)


@router.head("/{file_id}", include_in_schema=False)
@router.get(
    "/{file_id}",
    response_class=Response,
    responses={**answers(_PICTURES), 304: {"description": "The client has it already."}},
)
async def get_file(
    request: Request, gateway: GatewayDep, owner: OwnerDep, file_id: FileId
) -> Response:
    """A picture's bytes, for as long as the service keeps it.

    Where the service has API keys it takes the key of the request that made the picture. A picture
    never changes, so `If-None-Match` with its `ETag` answers 304.
    """
    view = await _find(gateway, owner, file_id)
    assert isinstance(view.job.params, GenerateParams)
    assert view.expires_at is not None
    headers = {
        "etag": f'"{file_id}"',
        "cache-control": f"private, max-age={max(0, int(view.expires_at - time.time()))}",
    }
    if _matches(request.headers.get("if-none-match", ""), file_id):
        return Response(status_code=304, headers=headers)
    content = await gateway.queue.output(file_id)
    if content is None:
        raise _no_file(file_id)
    return Response(content, media_type=f"image/{view.job.params.output_format}", headers=headers)


async def _find(gateway: Gateway, owner: str, file_id: str) -> JobView:
    """The job that made a picture: each makes one, so the picture bears its id.

    Raises:
        NotFound: there is none, it has expired, or it is somebody else's.
    """
    if re.fullmatch(ID_PATTERN, file_id):
        [view] = await gateway.queue.views([file_id])
        is_picture = view is not None and isinstance(view.job.params, GenerateParams)
        if view and is_picture and view.status is Status.SUCCEEDED and view.job.owner == owner:
            return view
    raise _no_file(file_id)


def _matches(if_none_match: str, file_id: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or f'"{file_id}"' in tags


def _no_file(file_id: str) -> NotFound:
    return NotFound(
        f"there is no file {file_id[:64]}: it never was here, is another key's, or has expired",
        code="file_not_found",
    )
