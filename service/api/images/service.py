"""Requests for pictures: checked against the model, made into jobs, results made into answers."""

import secrets
import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from models.manifest import Manifest, Task
from service.api.body import Form, validate_fields
from service.api.images.prompts import check_prompts, num_text_tokens, prompt_headers
from service.api.images.sampling import sampling_params
from service.api.images.schemas import (
    EditFields,
    GenerationFields,
    ImageFields,
    ImageItem,
    ImagesResponse,
    InputTokens,
    Usage,
)
from service.api.job_group import JobGroup, make_jobs, require_task
from service.api.latents.formats import write_safetensors
from service.api.negotiation import IMAGE_TYPES, choose_media_type, not_acceptable
from service.api.state import Gateway
from service.api.uploads import Upload, decode_upload
from service.boxes import Box, format_boxes
from service.errors import InvalidRequest, NotFound
from service.jobs.job import EditParams, GenerateParams, ImageFormat, Outcome
from service.log import get_logger
from service.sizes import written

JSON_TYPE = "application/json"


@dataclass(frozen=True)
class ImageCall:
    """A checked request: its jobs, their payload, and how the answer shall look."""

    group: JobGroup
    payload: bytes | None
    output_format: ImageFormat
    raw: bool
    """Answer with the picture's bytes instead of JSON."""
    stream: bool
    size: str
    usage: Usage
    headers: dict[str, str]


def plan_generation(
    request: Request, gateway: Gateway, owner: str, fields: GenerationFields
) -> ImageCall:
    """Jobs for pictures from a prompt.

    Raises:
        InvalidRequest: a field is out of the model's range; 406 for an Accept that cannot be met.
        NotFound: the request names another model.
    """
    _check(fields, gateway)
    output_format, raw = _answer_form(request, fields)
    params = [GenerateParams(**each) for each in _params(fields, gateway.manifest, output_format)]
    return ImageCall(
        group=_group(request, gateway, owner, fields, "generate", params),
        payload=None,
        output_format=output_format,
        raw=raw,
        stream=fields.stream,
        size=_size(gateway.manifest),
        usage=_usage(fields, gateway.manifest, num_sources=0),
        headers=prompt_headers(fields, gateway),
    )


async def plan_edit(request: Request, gateway: Gateway, owner: str, form: Form) -> ImageCall:
    """Jobs for pictures from a picture and an instruction.

    Raises:
        InvalidRequest, NotFound: as for generations, or the uploaded file is no usable picture.
    """
    # Before anything is read: to a model of classes an instruction is an unknown class.
    require_task(gateway.manifest, "edit")
    source = _source_file(form)
    fields = validate_fields(dict(form.fields), EditFields, strict=False)
    _check(fields, gateway)
    output_format, raw = _answer_form(request, fields)
    manifest = gateway.manifest
    upload = await decode_upload(
        gateway, source, size=manifest.image_size, fit=fields.fit, param="image"
    )
    # A client that names the model's size wants all of the frame, the bars included.
    box = upload.box if fields.size == "auto" else None
    image_guidance_scale = _or(fields.image_guidance_scale, manifest.default_image_guidance_scale)
    params = [
        EditParams(
            **each,
            image_guidance_scale=image_guidance_scale,
            strength=fields.strength,
            box=box,
        )
        for each in _params(fields, manifest, output_format)
    ]
    group = _group(request, gateway, owner, fields, "edit", params)
    return ImageCall(
        group=group,
        payload=write_safetensors({"images": upload.pixels[None]}),
        output_format=output_format,
        raw=raw,
        stream=fields.stream,
        size=box.size if box else _size(manifest),
        usage=_usage(fields, manifest, num_sources=1),
        headers={**prompt_headers(fields, gateway), **_fit_headers(upload, box)},
    )


def images_response(call: ImageCall, outcomes: Sequence[Outcome]) -> bytes:
    """The JSON answer; base64 of several pictures, so not for the event loop."""
    items = [
        ImageItem(b64_json=b64encode(outcome.outputs[0]).decode(), seed=job.params.seed)
        for job, outcome in zip(call.group.jobs, outcomes, strict=True)
        if isinstance(job.params, GenerateParams)
    ]
    answer = ImagesResponse(
        created=int(time.time()),
        data=items,
        output_format=call.output_format,
        size=call.size,
        usage=call.usage,
    )
    return answer.model_dump_json().encode()


def _check(fields: ImageFields, gateway: Gateway) -> None:
    """What pydantic cannot know: the model's limits and what this service does not offer yet."""
    manifest = gateway.manifest
    if fields.model not in (None, manifest.name):
        raise NotFound(
            f"there is no model {fields.model}: this service has {manifest.name}",
            param="model",
            code="model_not_found",
        )
    check_prompts(fields, gateway)
    offered = (_size(manifest), "auto")
    if fields.size not in offered:
        raise _out_of_range("size", f"is {fields.size}: offered are {' and '.join(offered)}")
    if fields.response_format == "url":
        raise _out_of_range("response_format", "url is not offered: ask for b64_json")
    if fields.partial_images:
        raise _out_of_range("partial_images", "are not offered by this model: send 0")
    if fields.background == "transparent":
        raise _out_of_range("background", "transparent is not offered: send opaque or auto")


def _answer_form(request: Request, fields: ImageFields) -> tuple[ImageFormat, bool]:
    """The pictures' format, and whether their bytes are the answer."""
    if fields.stream:
        return fields.output_format, False
    own_type = f"image/{fields.output_format}"
    offered = [JSON_TYPE, own_type, *(name for name in IMAGE_TYPES if name != own_type)]
    accept = request.headers.get("accept")
    chosen = choose_media_type(accept, offered)
    if chosen is None:
        raise not_acceptable(accept, offered)
    if chosen == JSON_TYPE:
        return fields.output_format, False
    if fields.n > 1:
        raise _out_of_range(
            "n", f"is {fields.n}, but Accept: {chosen} takes one picture: accept {JSON_TYPE}"
        )
    return IMAGE_TYPES[chosen], True


def _source_file(form: Form) -> bytes:
    """The one uploaded picture of an edit."""
    if "mask" in form.files or "mask" in form.fields:
        raise _out_of_range("mask", "is not supported by this model yet: leave it out")
    unknown = set(form.files) - {"image"}
    if unknown:
        name = min(unknown)
        raise _out_of_range(name, "is not a file of this request: send the picture as image")
    if "image" in form.fields:
        raise _out_of_range("image", "must be a file (with curl: -F image=@picture.png)")
    sources = form.files.get("image", [])
    if not sources:
        raise InvalidRequest(
            "image is required: send a picture file",
            status=422,
            param="image",
            code="missing_required_parameter",
        )
    if len(sources) > 1:
        raise _out_of_range("image", f"is given {len(sources)} times: this model edits one picture")
    return sources[0]


def _out_of_range(param: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{param} {problem}", status=422, param=param, code="invalid_value")


def _params(
    fields: ImageFields, manifest: Manifest, output_format: ImageFormat
) -> list[dict[str, Any]]:
    """What all pictures of a request have in common, and their seeds.

    Raises:
        InvalidRequest: see `sampling_params`.
    """
    sampling = sampling_params(fields, manifest)
    # 32 bits are short enough to be noted down and far too many to repeat by chance.
    first_seed = secrets.randbelow(2**32) if fields.seed is None else fields.seed
    return [
        {
            "prompt": fields.prompt,
            "negative_prompt": fields.negative_prompt,
            "seed": first_seed + index,
            **sampling,
            "output_format": output_format,
            "output_compression": fields.output_compression,
        }
        for index in range(fields.n)
    ]


def _group(
    request: Request,
    gateway: Gateway,
    owner: str,
    fields: ImageFields,
    task: Task,
    params: Sequence[GenerateParams],
) -> JobGroup:
    if gateway.settings.log_prompts:
        get_logger(__name__).info("prompt", task=task, prompt=fields.prompt)
    return make_jobs(
        request,
        gateway,
        owner,
        task=task,
        params=params,
        priority=fields.priority,
        deadline_ms=fields.deadline_ms,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _size(manifest: Manifest) -> str:
    height, width = manifest.image_size
    return f"{width}x{height}"


def _fit_headers(upload: Upload, box: Box | None) -> dict[str, str]:
    """How the source came to the model's size, and where it lies in the answered pictures."""
    if box is None or box.size == written(upload.frame):
        return {"x-rpiae-fit": upload.fitted, "x-rpiae-box": format_boxes([upload.box])}
    return {
        "x-rpiae-fit": f"{upload.fitted} and cropped back to {box.size}",
        "x-rpiae-box": format_boxes([Box(0, 0, box.width, box.height)]),
    }


def _usage(fields: ImageFields, manifest: Manifest, num_sources: int) -> Usage:
    _, height, width = manifest.latent_shape
    text = num_text_tokens(fields.prompt, manifest)
    source, output = num_sources * height * width, fields.n * height * width
    return Usage(
        input_tokens=text + source,
        input_tokens_details=InputTokens(text_tokens=text, image_tokens=source),
        output_tokens=output,
        total_tokens=text + source + output,
    )
