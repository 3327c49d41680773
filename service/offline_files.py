"""Files of the offline commands: names, formats, and errors that name the file."""

from pathlib import Path

from torch import Tensor

from service.engine.images import ImageFormat, encode_file
from service.errors import InvalidRequest

_FORMATS: dict[str, ImageFormat] = {
    ".png": "png",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
}
_QUALITY = 95


def format_of(output: Path) -> ImageFormat:
    """The picture format that a file's name asks for.

    Raises:
        InvalidRequest: none of those that are written.
    """
    image_format = _FORMATS.get(output.suffix.lower())
    if image_format is None:
        raise InvalidRequest(f"{output} must end in one of {', '.join(_FORMATS)}", param="output")
    return image_format


def numbered(output: Path, count: int) -> list[Path]:
    """`output`, or for several files output-1, output-2, ..."""
    if count == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{number}") for number in range(1, count + 1)]


def read_file(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        InvalidRequest: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from None


def write_image(path: Path, image: Tensor, text: dict[str, str] | None = None) -> None:
    """Write an image (3, H, W) uint8 in the format of the file's name, with text chunks in a PNG.

    Raises:
        InvalidRequest: it cannot be written.
    """
    write_file(path, encode_file(image, format_of(path), _QUALITY, text))


def write_file(path: Path, data: bytes) -> None:
    """Write a file.

    Raises:
        InvalidRequest: it cannot be written.
    """
    try:
        path.write_bytes(data)
    except OSError as error:
        raise InvalidRequest(
            f"cannot write {path}: {error.strerror or error}", param="output"
        ) from None
