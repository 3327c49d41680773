"""Pictures to latents and back: bodies are checked and become one job, its result the answer."""

import time
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from anyio import to_thread
from fastapi import Request
from numpy.typing import NDArray
from safetensors.numpy import load

from models.manifest import Manifest
from service.api.body import media_type, parse_json, read_body, read_form
from service.api.latents.formats import (
    JSON_TYPE,
    NPY_TYPES,
    SAFETENSORS_TYPES,
    TENSOR_TYPES,
    read_latents,
    write_json,
    write_npy,
)
from service.api.latents.schemas import DecodedImage, DecodedImages, DecodeQuery, EncodeFields
from service.api.negotiation import IMAGE_TYPES, choose_media_type, not_acceptable
from service.api.state import Gateway
from service.api.uploads import Fit, Upload, decode_base64, decode_upload
from service.errors import InvalidRequest
from service.jobs.job import DecodeParams, ImageFormat


@dataclass(frozen=True)
class Answer:
    """Body and media type of a finished request."""

    content: bytes
    media_type: str


def encode_media_type(request: Request) -> str:
    """What encode answers with: safetensors unless the client asks for another.

    Raises:
        InvalidRequest: 406.
    """
    return _negotiate(request, TENSOR_TYPES)


def decode_media_type(request: Request, query: DecodeQuery, num_latents: int) -> str:
    """What decode answers with: a picture for one item and JSON for many, unless asked otherwise.

    Raises:
        InvalidRequest: 406, also when a picture is asked for and there are many.
    """
    own_type = f"image/{query.output_format}"
    pictures = [own_type, *(name for name in IMAGE_TYPES if name != own_type)]
    tensors = (JSON_TYPE, *SAFETENSORS_TYPES, *NPY_TYPES)
    return _negotiate(request, (*pictures, *tensors) if num_latents == 1 else tensors)


async def read_pictures(request: Request, gateway: Gateway) -> list[bytes]:
    """The picture files of a body: one file as it is, multipart, or base64 in JSON.

    Raises:
        InvalidRequest: 415 another type of body; 422 no picture, too many, or not base64.
    """
    declared = media_type(request)
    max_images = gateway.settings.max_latents
    if declared == JSON_TYPE:
        fields = parse_json(await read_body(request), EncodeFields)
        _check_count(len(fields.images), max_images)
        decode_all = partial(_decode_texts, fields.images)
        return await to_thread.run_sync(decode_all, limiter=gateway.decoding)
    if declared == "multipart/form-data":
        form = await read_form(request, max_files=max_images)
        stray = [name for name in (*form.fields, *form.files) if name != "image"]
        if stray:
            raise InvalidRequest(
                f"{stray[0]} is not a part of this request: send picture files as image, "
                "options as query parameters",
                status=422,
                param=stray[0],
                code="unknown_parameter",
            )
        files = form.files.get("image", [])
        _check_count(len(files), max_images)
        return files
    if declared.startswith("image/"):
        return [await read_body(request)]
    raise InvalidRequest(
        f"content-type is {declared or 'missing'}: send one picture as image/*, or several as "
        f"multipart/form-data or {JSON_TYPE}",
        status=415,
        code="unsupported_media_type",
    )


async def decode_pictures(
    gateway: Gateway, files: Sequence[bytes], fit: Fit
) -> tuple[NDArray[np.uint8], str]:
    """uint8 (B, 3, H, W) at the model's size, and the value of `x-rpiae-fit`.

    Raises:
        InvalidRequest: a file is no usable picture; the error names which one.
    """
    uploads: list[Upload] = []
    for index, data in enumerate(files):
        param = "image" if len(files) == 1 else f"image.{index}"
        uploads.append(await decode_upload(gateway, data, fit=fit, param=param))
    fitted = [upload.fitted for upload in uploads]
    same = len(set(fitted)) == 1
    return np.stack([upload.pixels for upload in uploads]), fitted[0] if same else ", ".join(fitted)


async def read_latents_body(request: Request, gateway: Gateway) -> NDArray[np.float32]:
    """Latents (B, C, h, w) of a body in any of the formats that `formats` reads.

    Raises:
        InvalidRequest: see `read_latents`.
    """
    read = partial(
        read_latents,
        await read_body(request),
        media_type(request),
        shape=gateway.manifest.latent_shape,
        max_latents=gateway.settings.max_latents,
    )
    return await to_thread.run_sync(read, limiter=gateway.decoding)


def latents_answer(output: bytes, wanted: str, manifest: Manifest) -> Answer:
    """The worker's safetensors (latents, mean, logvar) in the wanted format."""
    if wanted in SAFETENSORS_TYPES:
        return Answer(output, wanted)
    arrays = load(output)
    if wanted in NPY_TYPES:
        return Answer(write_npy(arrays["latents"]), wanted)
    shape = list(arrays["latents"].shape)
    return Answer(write_json({"model": manifest.name, "shape": shape, **arrays}), JSON_TYPE)


def decode_params(wanted: str, query: DecodeQuery) -> DecodeParams:
    """What the worker shall make so that the answer can have the wanted media type."""
    tensors = wanted in SAFETENSORS_TYPES or wanted in NPY_TYPES
    return DecodeParams(
        output_format="tensor" if tensors else IMAGE_TYPES.get(wanted, query.output_format),
        output_compression=query.output_compression,
    )


def images_answer(
    outputs: Sequence[bytes], wanted: str, output_format: ImageFormat, manifest: Manifest
) -> Answer:
    """The worker's picture files, or its safetensors of images, in the wanted format."""
    if wanted in IMAGE_TYPES or wanted in SAFETENSORS_TYPES:
        return Answer(outputs[0], wanted)
    if wanted in NPY_TYPES:
        return Answer(write_npy(load(outputs[0])["images"]), wanted)
    height, width = manifest.image_size
    answer = DecodedImages(
        created=int(time.time()),
        data=[DecodedImage(b64_json=b64encode(output).decode()) for output in outputs],
        output_format=output_format,
        size=f"{width}x{height}",
    )
    return Answer(answer.model_dump_json().encode(), JSON_TYPE)


def _negotiate(request: Request, offered: Sequence[str]) -> str:
    accept = request.headers.get("accept")
    chosen = choose_media_type(accept, offered)
    if chosen is None:
        raise not_acceptable(accept, offered)
    return chosen


def _decode_texts(texts: Sequence[str]) -> list[bytes]:
    return [decode_base64(text, param=f"images.{index}") for index, text in enumerate(texts)]


def _check_count(num_images: int, max_images: int) -> None:
    if not 1 <= num_images <= max_images:
        raise InvalidRequest(
            f"{num_images} pictures arrived: send 1 to {max_images}",
            status=422,
            param="image",
            code="invalid_value",
        )
