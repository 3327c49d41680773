"""Uploaded pictures to pixels at the model's size. Every byte here comes from a stranger.

The type is read from the content, the pixel count from the header before anything is decoded, and
what was done to make the picture fit is reported back.
"""

import binascii
import struct
import zlib
from base64 import b64decode
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Literal, TypeAlias

import numpy as np
from anyio import to_thread
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from service.api.state import Gateway
from service.errors import InvalidRequest

Fit: TypeAlias = Literal["pad", "center-crop", "stretch"]

FORMATS = ("PNG", "JPEG", "WEBP")
_WHITE = (255, 255, 255)
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
# What Pillow's decoders raise on broken files.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


@dataclass(frozen=True)
class Upload:
    """A picture at the model's size: pixels uint8 (3, H, W), and what was done to it."""

    pixels: NDArray[np.uint8]
    fitted: str


def decode_image(
    data: bytes, *, size: tuple[int, int], fit: Fit, max_pixels: int, param: str
) -> Upload:
    """Decode an uploaded file to sRGB pixels at `size`.

    EXIF orientation is applied, transparency is painted on white, 16 bits become 8, CMYK becomes
    RGB.

    Args:
        data: the file as it arrived.
        size: height, width of the result.
        fit: `pad` scales the whole picture into the frame and paints the rest white, `center-crop`
            fills the frame and cuts what stands out, `stretch` ignores the aspect ratio.
        max_pixels: refused above this, before decoding.
        param: the request's field, for error messages.

    Raises:
        InvalidRequest: 415 no picture of a known type, 413 too many pixels, 422 broken or animated.
    """
    image = _open(data, max_pixels=max_pixels, param=param)
    try:
        image.load()
        image = _to_eight_bits(_upright(image))
    except _BROKEN as error:
        raise _broken(param, error) from None
    framed, fitted = _fit(image, size, fit)
    return Upload(np.ascontiguousarray(np.asarray(framed).transpose(2, 0, 1)), fitted)


async def decode_upload(gateway: Gateway, data: bytes, *, fit: Fit, param: str) -> Upload:
    """`decode_image` in a thread, with the service's limits and the model's size.

    Raises:
        InvalidRequest: see `decode_image`.
    """
    decode = partial(
        decode_image,
        data,
        size=gateway.manifest.image_size,
        fit=fit,
        max_pixels=gateway.settings.max_pixels,
        param=param,
    )
    return await to_thread.run_sync(decode, limiter=gateway.decoding)


def decode_base64(text: str, *, param: str) -> bytes:
    """Bytes of a base64 string, with or without a `data:image/...;base64,` prefix.

    Raises:
        InvalidRequest: 422 when the text is not base64.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(
            f"{param} is not valid base64: send the file's bytes in standard base64",
            status=422,
            param=param,
            code="invalid_base64",
        ) from None


def _open(data: bytes, *, max_pixels: int, param: str) -> Image.Image:
    """Read the header only: type, size, number of frames."""
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(param, "too many pixels", max_pixels) from None
    except UnidentifiedImageError:
        raise InvalidRequest(
            f"{param} ({len(data)} bytes) is not a picture this service reads: "
            "send PNG, JPEG or WebP",
            status=415,
            param=param,
            code="unsupported_image_type",
        ) from None
    except _BROKEN as error:
        raise _broken(param, error) from None
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(param, f"{width}x{height} = {width * height} pixels", max_pixels)
    # JPEGs of several frames (MPO) are phone photographs with a depth or gain map behind.
    num_frames = getattr(image, "n_frames", 1)
    if image.format in ("PNG", "WEBP") and num_frames > 1:
        raise InvalidRequest(
            f"{param} is an animation of {num_frames} frames: send one still picture",
            status=422,
            param=param,
            code="animated_image",
        )
    return image


def _too_large(param: str, size: str, max_pixels: int) -> InvalidRequest:
    return InvalidRequest(
        f"{param} has {size}, the limit is {max_pixels}: send a smaller picture",
        status=413,
        param=param,
        code="image_too_large",
    )


def _broken(param: str, error: BaseException) -> InvalidRequest:
    return InvalidRequest(
        f"{param} cannot be decoded, the file is truncated or damaged ({error}): send it again",
        status=422,
        param=param,
        code="invalid_image",
    )


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; an unreadable EXIF block is as good as none."""
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:
        return image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where the picture has any transparency."""
    if image.mode in _SIXTEEN_BIT_MODES:
        # Pillow's own conversion cuts at 255 instead of scaling.
        levels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return image.convert("RGBA")
    return image.convert("RGB")


def _fit(image: Image.Image, size: tuple[int, int], fit: Fit) -> tuple[Image.Image, str]:
    """RGB at `size`, and the words for the `x-rpiae-fit` header."""
    height, width = size
    source = f"{image.width}x{image.height}"
    if (image.height, image.width) == size:
        return _on_white(image, size), "none"
    lanczos = Image.Resampling.LANCZOS
    if fit == "stretch":
        scaled = image.resize((width, height), lanczos)
    elif fit == "center-crop":
        scaled = ImageOps.fit(image, (width, height), lanczos)
    else:
        scale = min(width / image.width, height / image.height)
        scaled = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), lanczos
        )
    fitted = f"{fit} {source} to {scaled.width}x{scaled.height} in {width}x{height}"
    return _on_white(scaled, size), fitted


def _on_white(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture in the middle of a white frame of `size`, transparency painted white."""
    height, width = size
    frame = Image.new("RGB", (width, height), _WHITE)
    corner = ((width - image.width) // 2, (height - image.height) // 2)
    frame.paste(image, corner, image if image.mode == "RGBA" else None)
    return frame
