"""`/v1/images`: pictures from a prompt, and from a picture with an instruction."""

from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.auth import OwnerDep
from service.api.body import parse_json, read_body, read_form, require_media_type
from service.api.images.schemas import EditFields, GenerationFields, ImagesResponse
from service.api.images.service import (
    JSON_TYPE,
    ImageCall,
    images_response,
    plan_edit,
    plan_generation,
)
from service.api.images.stream import EventName, ImageEventStream
from service.api.job_group import unless_disconnected
from service.api.openapi import BINARY, answers, json_body, multipart_schema, request_body
from service.api.request_context import context_of, serves
from service.api.state import GatewayDep
from service.jobs.job import GenerateParams

# A prompt and two dozen short fields; far below what a picture may take.
MAX_JSON_BYTES = 2**18
# More files than the one picture are let in, so that the answer can say what is wrong.
MAX_FILES = 17

router = APIRouter(prefix="/v1/images", tags=["images"])

_ANSWERS: dict[int | str, dict[str, Any]] = answers(
    {"image/png": BINARY, "image/jpeg": BINARY, "image/webp": BINARY, "text/event-stream": {}}
)


@router.post(
    "/generations",
    response_model=ImagesResponse,
    responses=_ANSWERS,
    openapi_extra=json_body(GenerationFields),
    dependencies=[serves("generate")],
)
async def generate_images(request: Request, gateway: GatewayDep, owner: OwnerDep) -> Response:
    """Pictures from a prompt.

    Answers JSON with base64; `Accept: image/png` (jpeg, webp) answers one picture's bytes; `stream`
    answers server-sent events.
    """
    require_media_type(request, JSON_TYPE)
    fields = parse_json(await read_body(request, MAX_JSON_BYTES), GenerationFields)
    call = plan_generation(request, gateway, owner, fields)
    return await _answer(request, call, "image_generation.completed")


@router.post(
    "/edits",
    response_model=ImagesResponse,
    responses=_ANSWERS,
    openapi_extra=request_body(
        {"multipart/form-data": multipart_schema(EditFields, {"image": BINARY})}
    ),
    dependencies=[serves("edit")],
)
async def edit_image(request: Request, gateway: GatewayDep, owner: OwnerDep) -> Response:
    """Pictures from one picture and an instruction; everything else stays as it is.

    The picture is brought to the model's size and the answer cropped back to its aspect ratio; the
    header `x-rpiae-fit` says how, `x-rpiae-box` where the picture lies in the answer.
    """
    form = await read_form(request, max_files=MAX_FILES)
    call = await plan_edit(request, gateway, owner, form)
    return await _answer(request, call, "image_edit.completed")


async def _answer(request: Request, call: ImageCall, event_name: EventName) -> Response:
    """Put the jobs, then stream, or wait for them and answer at once."""
    if call.stream:
        await call.group.put(call.payload)
        return ImageEventStream(call, context_of(request), event_name)
    async with call.group:
        await call.group.put(call.payload)
        outcomes = await unless_disconnected(request, call.group.outcomes())
    if call.raw:
        (params,) = (job.params for job in call.group.jobs)
        assert isinstance(params, GenerateParams)
        headers = {**call.headers, "x-rpiae-seed": str(params.seed)}
        return Response(
            outcomes[0].outputs[0], media_type=f"image/{call.output_format}", headers=headers
        )
    content = await to_thread.run_sync(images_response, call, outcomes)
    return Response(content, media_type=JSON_TYPE, headers=call.headers)
