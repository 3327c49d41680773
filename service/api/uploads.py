"""Uploaded pictures to pixels of a frame. Every byte here comes from a stranger.

The type is read from the content, the pixel count from the header before anything is decoded, and
what was done to make the picture fit is reported back.
"""

import binascii
import re
import struct
import zlib
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from anyio import to_thread
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from service.api.color import to_srgb
from service.api.file_parts import QUICK_PIXELS, decodes_quickly, excess_parts
from service.api.framing import Fit, Framed, fit_to_frame, pad_to_frame
from service.api.state import Gateway
from service.boxes import Box
from service.errors import InvalidRequest
from service.sizes import Size, Sizes, written

FORMATS = ("PNG", "JPEG", "WEBP")
_BEGINNINGS = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)
# What Pillow's decoders raise on broken files.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


@dataclass(frozen=True)
class Upload:
    """A picture in its frame: pixels uint8 (3, H, W), what was done to it, and where it lies.

    source_size: height, width of the upright picture before it came to the frame.
    """

    pixels: NDArray[np.uint8]
    fitted: str
    box: Box
    source_size: tuple[int, int]

    @property
    def frame(self) -> tuple[int, int]:
        """Height, width."""
        return self.pixels.shape[1], self.pixels.shape[2]


def decode_image(
    data: bytes, *, size: tuple[int, int], fit: Fit, max_pixels: int, param: str
) -> Upload:
    """Decode an uploaded file to sRGB pixels at `size`.

    EXIF orientation and an embedded colour profile are applied, transparency is painted on white,
    16 bits become 8, CMYK and grey become RGB.

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
    image = decode_file(data, max_pixels=max_pixels, param=param)
    return _upload(image, fit_to_frame(image, size, fit))


def decode_native_image(data: bytes, *, sizes: Sizes, max_pixels: int, param: str) -> Upload:
    """`decode_image` with the picture's own pixels, padded to the next whole latent cells.

    Raises:
        InvalidRequest: see `decode_image`; 422 naming `size` when that frame is too large.
    """
    image = decode_file(data, max_pixels=max_pixels, param=param)
    frame = sizes.native_frame((image.height, image.width))
    return _upload(image, pad_to_frame(image, frame))


def decode_file(data: bytes, *, max_pixels: int, param: str) -> Image.Image:
    """An uploaded file upright at its own size, sRGB; RGBA where it has any transparency.

    Raises:
        InvalidRequest: see `decode_image`.
    """
    image = _open(data, max_pixels=max_pixels, param=param)
    try:
        image.load()
        return to_srgb(_upright(image))
    except _BROKEN as error:
        raise _broken(param, error) from None


async def decode_upload(
    gateway: Gateway, data: bytes, *, size: Size, fit: Fit, param: str
) -> Upload:
    """`decode_image` or `decode_native_image` with the service's limits; in a thread unless that
    would take longer than the decoding.

    Raises:
        InvalidRequest: see those two.
    """
    max_pixels = gateway.settings.max_pixels

    def decode() -> Upload:
        if size == "native":
            return decode_native_image(
                data, sizes=gateway.sizes, max_pixels=max_pixels, param=param
            )
        return decode_image(data, size=size, fit=fit, max_pixels=max_pixels, param=param)

    with gateway.tracing.span("decode upload"):
        small = size == "native" or size[0] * size[1] <= QUICK_PIXELS
        if small and decodes_quickly(data):
            return decode()
        return await to_thread.run_sync(decode, limiter=gateway.decoding)


def stack_uploads(uploads: Sequence[Upload]) -> NDArray[np.uint8]:
    """uint8 (B, 3, H, W).

    Raises:
        InvalidRequest: 422 when the frames differ, as they may with native sizes.
    """
    frames = dict.fromkeys(written(upload.frame) for upload in uploads)
    if len(frames) > 1:
        raise InvalidRequest(
            f"size is native and the pictures take frames of {', '.join(frames)}: send pictures "
            "of one size together, or name one size for all",
            status=422,
            param="size",
            code="invalid_value",
        )
    return np.stack([upload.pixels for upload in uploads])


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


def _upload(image: Image.Image, framed: Framed) -> Upload:
    pixels = np.ascontiguousarray(np.asarray(framed.image).transpose(2, 0, 1))
    return Upload(pixels, framed.fitted, framed.box, (image.height, image.width))


def _open(data: bytes, *, max_pixels: int, param: str) -> Image.Image:
    """Read the header only: type, size, number of frames."""
    excess = excess_parts(data)
    if excess:
        raise InvalidRequest(
            f"{param} has {excess}: save it again as a plain PNG or JPEG",
            status=422,
            param=param,
            code="invalid_image",
        )
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(param, "too many pixels", max_pixels) from None
    except UnidentifiedImageError:
        if _BEGINNINGS.match(data):
            raise _broken(param, "its header cannot be read") from None
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


def _broken(param: str, reason: object) -> InvalidRequest:
    return InvalidRequest(
        f"{param} cannot be decoded, the file is truncated or damaged ({reason}): send it again",
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
