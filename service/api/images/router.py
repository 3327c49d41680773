"""`/v1/images`: pictures from a prompt, and from a picture with an instruction."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api.auth import OwnerDep
from service.api.body import parse_json, read_body, read_form, require_media_type
from service.api.images.answers import JSON_TYPE
from service.api.images.plans import ImageCall, plan_edit, plan_generation, plan_variation
from service.api.images.schemas import (
    EditFields,
    GenerationFields,
    ImagesResponse,
    VariationFields,
)
from service.api.images.stream import EventFamily, ImageEventStream
from service.api.jobs.description import job_answers, takes_job_headers
from service.api.jobs.respond import respond
from service.api.openapi import BINARY, json_body, multipart_schema, request_body
from service.api.request_context import context_of
from service.api.state import Gateway, GatewayDep

# A prompt and two dozen short fields; far below what a picture may take.
MAX_JSON_BYTES = 2**18
# OpenAI's own limit, with the mask: more than the one picture are let in, so that the answer can
# say what is wrong.
MAX_FILES = 17

_SOURCE = {**BINARY, "description": "One picture: PNG, JPEG or WebP."}
_MASK = {
    **BINARY,
    "description": "PNG or WebP of the picture's size: whatever is not fully opaque may change.",
}

router = APIRouter(prefix="/v1/images", tags=["images"])

_PICTURES: dict[str, Any] = {name: BINARY for name in ("image/png", "image/jpeg", "image/webp")}
_ANSWERS = job_answers({**_PICTURES, "text/event-stream": {}})


@router.post(
    "/generations",
    response_model=ImagesResponse,
    responses=_ANSWERS,
    openapi_extra=json_body(GenerationFields),
    dependencies=[takes_job_headers()],
)
async def generate_images(request: Request, gateway: GatewayDep, owner: OwnerDep) -> Response:
    """Pictures from a prompt.

    Answers JSON with base64; `Accept: image/png` (jpeg, webp) answers one picture's bytes; `stream`
    answers server-sent events: `image_generation.partial_image` for each preview that
    `partial_images` asks for, `image_generation.completed` for each picture, `error` if one fails.
    """
    require_media_type(request, JSON_TYPE)
    with gateway.tracing.span("read"):
        fields = parse_json(await read_body(request, MAX_JSON_BYTES), GenerationFields)
        call = plan_generation(request, gateway, owner, fields)
    return await _answer(request, gateway, call, "image_generation")


@router.post(
    "/edits",
    response_model=ImagesResponse,
    responses=_ANSWERS,
    openapi_extra=request_body(
        {
            "multipart/form-data": multipart_schema(
                EditFields, {"image": _SOURCE}, optional={"mask": _MASK}
            )
        }
    ),
    dependencies=[takes_job_headers()],
)
async def edit_image(request: Request, gateway: GatewayDep, owner: OwnerDep) -> Response:
    """Pictures from one picture and an instruction; everything else stays as it is.

    With a `mask` only its transparent pixels change; all others come back exactly as they were in
    the picture at the model's size. Streams as generations do, with `image_edit` in the names.

    The picture is brought to the model's size and the answer cropped back to its aspect ratio; the
    header `x-rpiae-fit` says how, `x-rpiae-box` where the picture lies in the answer.
    """
    with gateway.tracing.span("read"):
        form = await read_form(request, max_files=MAX_FILES)
        call = await plan_edit(request, gateway, owner, form)
    return await _answer(request, gateway, call, "image_edit")


@router.post(
    "/variations",
    response_model=ImagesResponse,
    responses=job_answers(_PICTURES),
    openapi_extra=request_body(
        {"multipart/form-data": multipart_schema(VariationFields, {"image": _SOURCE})}
    ),
    dependencies=[takes_job_headers()],
)
async def vary_image(request: Request, gateway: GatewayDep, owner: OwnerDep) -> Response:
    """Pictures like one picture, without an instruction; `strength` says how far from it.

    The picture comes to the model's size and back as for edits.
    """
    with gateway.tracing.span("read"):
        form = await read_form(request, max_files=MAX_FILES)
        call = await plan_variation(request, gateway, owner, form)
    return await _answer(request, gateway, call)


async def _answer(
    request: Request, gateway: Gateway, call: ImageCall, events: EventFamily | None = None
) -> Response:
    """Put the jobs, then stream, or answer once they have ended, or at once with their state."""
    if events and call.stream and not call.group.asynchronous:
        await call.group.put(call.payload)
        return ImageEventStream(call, context_of(request), events, gateway)
    return await respond(request, gateway, call.group, call.payload)
