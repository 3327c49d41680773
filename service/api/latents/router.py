"""`/v1/latents`: pictures to latents and latents to pictures, one or many at once."""

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from service.api.auth import OwnerDep
from service.api.jobs.description import job_answers, takes_job_headers
from service.api.jobs.respond import respond
from service.api.latents.answers import (
    DecodedAnswer,
    EncodedAnswer,
    decode_media_type,
    decode_params,
    encode_media_type,
)
from service.api.latents.formats import (
    JSON_TYPE,
    NPY_TYPES,
    SAFETENSORS_TYPES,
    boxes_to_keep,
    write_safetensors,
)
from service.api.latents.schemas import (
    DecodedImages,
    DecodeFields,
    DecodeQuery,
    EncodedLatents,
    EncodeFields,
    EncodeQuery,
)
from service.api.latents.service import (
    decode_pictures,
    read_latents_body,
    read_pictures,
)
from service.api.new_jobs import make_jobs
from service.api.openapi import BINARY, multipart_schema, request_body
from service.api.state import GatewayDep
from service.jobs.job import EncodeParams
from service.sizes import written

router = APIRouter(prefix="/v1/latents", tags=["latents"])

_TENSORS: dict[str, Any] = dict.fromkeys((*SAFETENSORS_TYPES, *NPY_TYPES), BINARY)
_PICTURES: dict[str, Any] = dict.fromkeys(("image/png", "image/jpeg", "image/webp"), BINARY)
_FILES = {"image": {"type": "array", "items": BINARY}}


@router.post(
    "/encode",
    response_model=EncodedLatents,
    responses=job_answers(_TENSORS),
    openapi_extra=request_body(
        {
            **_PICTURES,
            "multipart/form-data": multipart_schema(None, _FILES),
            JSON_TYPE: EncodeFields.model_json_schema(),
        }
    ),
    dependencies=[takes_job_headers()],
)
async def encode_images(
    request: Request,
    gateway: GatewayDep,
    owner: OwnerDep,
    query: Annotated[EncodeQuery, Query()],
) -> Response:
    """Latents of pictures, normalised, with mean and log variance of the posterior.

    Answers safetensors (`latents`, `mean`, `logvar`, `boxes`), npy (`latents` only) or JSON, by
    `Accept`. Pictures are brought to the model's size, or to `size`: the header `x-rpiae-fit` says
    how, and `x-rpiae-box` where each then lies in its frame, as `left,top,width,height` in pixels
    separated by `;`. Decode takes that as `box` to cut the bars off again.
    """
    wanted = encode_media_type(request)
    size = gateway.sizes.parse(query.size)
    with gateway.tracing.span("read"):
        files = await read_pictures(request, gateway)
        pictures = await decode_pictures(gateway, files, size, query)
    headers = pictures.headers
    content: list[Any] = [query.model_dump(exclude_defaults=True), *files]
    seed = 0
    if query.sample:
        seed = secrets.randbelow(2**32) if query.seed is None else query.seed
        headers["x-rpiae-seed"] = str(seed)
    plan = EncodedAnswer(
        wanted=wanted,
        model=gateway.manifest.name,
        frame_size=written(pictures.frame),
        boxes=pictures.boxes,
        headers=headers,
    )
    params = EncodeParams(sample=query.sample, seed=seed)
    group = make_jobs(
        request, gateway, owner, task="encode", params=[params], plan=plan, content=content
    )
    payload = write_safetensors({"images": pictures.pixels})
    return await respond(request, gateway, group, payload)


@router.post(
    "/decode",
    response_model=DecodedImages,
    responses=job_answers({**_PICTURES, **_TENSORS}),
    openapi_extra=request_body({**_TENSORS, JSON_TYPE: DecodeFields.model_json_schema()}),
    dependencies=[takes_job_headers()],
)
async def decode_latents(
    request: Request,
    gateway: GatewayDep,
    owner: OwnerDep,
    query: Annotated[DecodeQuery, Query()],
) -> Response:
    """Pictures of latents, which are normalised as encode gives them.

    Answers a picture for one item and JSON with base64 for many; with `Accept`, also one array of
    uint8 pixels (B, 3, H, W) as safetensors (`images`) or npy. Pictures are cut to `box`.
    """
    with gateway.tracing.span("read"):
        file = await read_latents_body(request, gateway)
    wanted = decode_media_type(request, query, len(file.latents))
    frame = gateway.sizes.frame_of(file.latents.shape[2:])
    boxes = boxes_to_keep(query.box, file, frame)
    sizes = [box.size for box in boxes] or [written(frame)] * len(file.latents)
    plan = DecodedAnswer(wanted=wanted, output_format=query.output_format, sizes=sizes)
    params = decode_params(wanted, query, boxes)
    group = make_jobs(
        request,
        gateway,
        owner,
        task="decode",
        params=[params],
        plan=plan,
        content=[query.model_dump(exclude_defaults=True), *file.content],
    )
    payload = write_safetensors({"latents": file.latents})
    return await respond(request, gateway, group, payload)
