"""Bodies of the latent endpoints: pictures to encode and latents to decode, checked."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from anyio import to_thread
from fastapi import Request
from numpy.typing import NDArray

from service.api.body import media_type, parse_json, read_body, read_form
from service.api.latents.formats import (
    JSON_TYPE,
    Accepted,
    LatentsFile,
    read_latents,
)
from service.api.latents.schemas import (
    EncodeFields,
    EncodeQuery,
)
from service.api.state import Gateway
from service.api.uploads import decode_base64, decode_upload, stack_uploads
from service.boxes import (
    Box,
    format_boxes,
)
from service.errors import InvalidRequest
from service.sizes import Size

_QUICK_BYTES = 2**15  # of a body; it is read before a thread would have begun


@dataclass(frozen=True)
class Pictures:
    """Pictures to encode: uint8 (B, 3, H, W), where each lies in its frame, what was done to them.

    fitted: for the header `x-rpiae-fit`; one entry where all pictures share it.
    """

    pixels: NDArray[np.uint8]
    boxes: list[Box]
    fitted: str

    @property
    def frame(self) -> tuple[int, int]:
        """Height, width."""
        return self.pixels.shape[2], self.pixels.shape[3]

    @property
    def headers(self) -> dict[str, str]:
        """What was done, for the answer."""
        return {"x-rpiae-fit": self.fitted, "x-rpiae-box": format_boxes(self.boxes)}


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
        if sum(map(len, fields.images)) <= _QUICK_BYTES:
            return decode_all()
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
    gateway: Gateway, files: Sequence[bytes], size: Size, query: EncodeQuery
) -> Pictures:
    """The pictures of a request, each in the frame that `size` and `fit` ask for.

    Raises:
        InvalidRequest: a file is no usable picture, and the error names which one; the pictures
            take different frames, or more pixels than one request may have.
    """
    if size == "native" and query.fit != "pad":
        raise InvalidRequest(
            f"fit is {query.fit}: size=native pads to whole latent cells, leave fit out",
            status=422,
            param="fit",
            code="invalid_value",
        )
    uploads = []
    for index, data in enumerate(files):
        if index:
            await asyncio.sleep(0)  # small pictures are decoded here, in the loop
        param = "image" if len(files) == 1 else f"image.{index}"
        upload = await decode_upload(gateway, data, size=size, fit=query.fit, param=param)
        uploads.append(upload)
        gateway.sizes.check_total(len(uploads), upload.frame, gateway.settings.max_pixels, "size")
    fitted = list(dict.fromkeys(upload.fitted for upload in uploads))
    return Pictures(
        pixels=stack_uploads(uploads),
        boxes=[upload.box for upload in uploads],
        fitted=fitted[0] if len(fitted) == 1 else ", ".join(u.fitted for u in uploads),
    )


async def read_latents_body(request: Request, gateway: Gateway) -> LatentsFile:
    """Latents of a body in any of the formats that `formats` reads.

    Raises:
        InvalidRequest: see `read_latents`; 422 more pixels than one request may have.
    """
    accepted = Accepted(
        shape=gateway.manifest.latent_shape,
        max_latents=gateway.settings.max_latents,
        max_grid=gateway.sizes.max_grid,
    )
    body = await read_body(request)
    read = partial(read_latents, body, media_type(request), accepted)
    if len(body) <= _QUICK_BYTES:
        file = read()
    else:
        file = await to_thread.run_sync(read, limiter=gateway.decoding)
    frame = gateway.sizes.frame_of(file.latents.shape[2:])
    gateway.sizes.check_total(len(file.latents), frame, gateway.settings.max_pixels, "latents")
    return file


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
