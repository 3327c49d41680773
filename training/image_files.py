"""Pictures from the bytes of a file, whatever the file holds; what cannot be used is skipped."""

import struct
import warnings
import zlib
from io import BytesIO

from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"}
)
# Whatever a file's name says, no other reader of Pillow's is tried: some run other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MAX_ASPECT = 16.0
"""Longest side over shortest. A longer strip would take gigabytes once its short side is fitted."""

# What Pillow's readers let through when a file is damaged: they do not wrap every error.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)


class SkippedError(ValueError):
    """A sample cannot be used; `reason` is a short phrase to count by."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_picture(data: bytes) -> Image.Image:
    """The picture as 8-bit RGB, upright, transparent parts on white.

    Raises:
        SkippedError: empty, not an image, too large, broken (also cut short), or a strip.
    """
    if not data:
        raise SkippedError("empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata and of more than 89 million pixels
        try:
            picture = Image.open(BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError:
            raise SkippedError("not an image") from None
        except Image.DecompressionBombError:
            raise SkippedError("too large") from None
        except _DAMAGE:
            raise SkippedError("broken") from None
        if max(picture.size) > MAX_ASPECT * min(picture.size):
            raise SkippedError("a strip")
        try:
            picture.load()
            return _on_white(_upright(picture))
        except _DAMAGE:
            raise SkippedError("broken") from None


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except _DAMAGE:  # the pixels are fine, only the metadata is not
        return picture


def _on_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
