"""Requests for pictures: checked against the model and made into jobs."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from models.manifest import Manifest, Task
from service.api.body import Form, validate_fields
from service.api.images.answers import JSON_TYPE, ImagesAnswer
from service.api.images.prompts import check_prompts, num_text_tokens, prompt_headers
from service.api.images.sampling import sampling_params
from service.api.images.schemas import (
    EditFields,
    GenerationFields,
    ImageFields,
    InputTokens,
    PictureFields,
    Usage,
    VariationFields,
)
from service.api.images.sources import SourceFiles, decode_source, source_files
from service.api.job_group import JobGroup
from service.api.negotiation import (
    IMAGE_TYPES,
    choose_media_type,
    not_acceptable,
    prefers_async,
)
from service.api.new_jobs import make_jobs, require_task
from service.api.state import Gateway
from service.api.uploads import Upload
from service.boxes import Box, format_boxes
from service.errors import InvalidRequest, NotFound
from service.jobs.job import EditParams, GenerateParams, ImageFormat
from service.log import get_logger
from service.sizes import written


@dataclass(frozen=True)
class ImageCall:
    """A checked request: its jobs, their payload, and how the answer shall look."""

    group: JobGroup
    payload: bytes | None
    plan: ImagesAnswer
    stream: bool


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
    params = [
        GenerateParams(**each) for each in _params(request, fields, gateway.manifest, output_format)
    ]
    plan = ImagesAnswer(
        output_format=output_format,
        raw=raw,
        response_format=fields.response_format,
        size=_size(gateway.manifest),
        usage=_usage(fields, gateway.manifest, num_sources=0),
        headers=prompt_headers(fields, gateway),
    )
    group = _group(request, gateway, owner, fields, "generate", params, plan, None)
    return ImageCall(group, payload=None, plan=plan, stream=fields.stream)


async def plan_edit(request: Request, gateway: Gateway, owner: str, form: Form) -> ImageCall:
    """Jobs for pictures from a picture and an instruction, and maybe a mask of what may change.

    Raises:
        InvalidRequest, NotFound: as for generations, or an uploaded file cannot be used.
    """
    # Before anything is read: to a model of classes an instruction is an unknown class.
    require_task(gateway.manifest, "edit")
    files = source_files(form, gateway.manifest, with_mask=True)
    fields = validate_fields(dict(form.fields), EditFields, strict=False)
    return await _plan_from_source(request, gateway, owner, "edit", fields, files)


async def plan_variation(request: Request, gateway: Gateway, owner: str, form: Form) -> ImageCall:
    """Jobs for pictures like a picture.

    Raises:
        InvalidRequest, NotFound: as for edits.
    """
    require_task(gateway.manifest, "variation")
    files = source_files(form, gateway.manifest, with_mask=False)
    fields = validate_fields(dict(form.fields), VariationFields, strict=False)
    return await _plan_from_source(request, gateway, owner, "variation", fields, files)


async def _plan_from_source(
    request: Request,
    gateway: Gateway,
    owner: str,
    task: Task,
    fields: EditFields | VariationFields,
    files: SourceFiles,
) -> ImageCall:
    _check(fields, gateway)
    output_format, raw = _answer_form(request, fields)
    manifest = gateway.manifest
    source = await decode_source(gateway, files, fields.fit)
    # A client that names the model's size wants all of the frame, the bars included.
    box = source.upload.box if fields.size == "auto" else None
    image_guidance_scale = _or(fields.image_guidance_scale, manifest.default_image_guidance_scale)
    params = [
        EditParams(
            **each,
            image_guidance_scale=image_guidance_scale,
            strength=fields.strength,
            box=box,
        )
        for each in _params(request, fields, manifest, output_format)
    ]
    prompted = prompt_headers(fields, gateway) if isinstance(fields, ImageFields) else {}
    plan = ImagesAnswer(
        output_format=output_format,
        raw=raw,
        response_format=fields.response_format,
        size=box.size if box else _size(manifest),
        usage=_usage(fields, manifest, num_sources=1),
        headers={**prompted, **_fit_headers(source.upload, box)},
    )
    group = _group(request, gateway, owner, fields, task, params, plan, files)
    return ImageCall(group, payload=source.to_payload(), plan=plan, stream=_streams(fields))


def _check(fields: PictureFields, gateway: Gateway) -> None:
    """What pydantic cannot know: the model's limits and what this service does not offer."""
    manifest = gateway.manifest
    if fields.model not in (None, manifest.name):
        raise NotFound(
            f"there is no model {fields.model}: this service has {manifest.name}",
            param="model",
            code="model_not_found",
        )
    if isinstance(fields, ImageFields):
        check_prompts(fields, gateway)
        if fields.background == "transparent":
            raise _out_of_range("background", "transparent is not offered: send opaque or auto")
    offered = (_size(manifest), "auto")
    if fields.size not in offered:
        raise _out_of_range("size", f"is {fields.size}: offered are {' and '.join(offered)}")
    if fields.response_format == "url" and _streams(fields):
        raise _out_of_range("response_format", "url is not offered in a stream: ask for b64_json")


def _streams(fields: PictureFields) -> bool:
    return isinstance(fields, ImageFields) and fields.stream


def _num_previews(request: Request, fields: PictureFields) -> int:
    """Previews to compute: only where somebody can see them."""
    seen = _streams(fields) or prefers_async(request)
    return fields.partial_images if isinstance(fields, ImageFields) and seen else 0


def _answer_form(request: Request, fields: PictureFields) -> tuple[ImageFormat, bool]:
    """The pictures' format, and whether their bytes are the answer."""
    if _streams(fields):
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


def _out_of_range(param: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{param} {problem}", status=422, param=param, code="invalid_value")


def _params(
    request: Request,
    fields: GenerationFields | EditFields | VariationFields,
    manifest: Manifest,
    output_format: ImageFormat,
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
            "partial_images": _num_previews(request, fields),
        }
        for index in range(fields.n)
    ]


def _group(
    request: Request,
    gateway: Gateway,
    owner: str,
    fields: GenerationFields | EditFields | VariationFields,
    task: Task,
    params: Sequence[GenerateParams],
    plan: ImagesAnswer,
    files: SourceFiles | None,
) -> JobGroup:
    if gateway.settings.log_prompts:
        get_logger(__name__).info("prompt", task=task, prompt=fields.prompt)
    return make_jobs(
        request,
        gateway,
        owner,
        task=task,
        params=params,
        plan=plan,
        content=[fields.model_dump(exclude_defaults=True), *(files.content if files else ())],
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


def _usage(
    fields: GenerationFields | EditFields | VariationFields, manifest: Manifest, *, num_sources: int
) -> Usage:
    _, height, width = manifest.latent_shape
    text = num_text_tokens(fields.prompt, manifest)
    source, output = num_sources * height * width, fields.n * height * width
    return Usage(
        input_tokens=text + source,
        input_tokens_details=InputTokens(text_tokens=text, image_tokens=source),
        output_tokens=output,
        total_tokens=text + source + output,
    )
