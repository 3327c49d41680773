"""Arrays to and from bytes: safetensors, npy, JSON. Nothing here trusts a length it was told.

Latents are (B, C, h, w) float32, normalised; images are (B, 3, H, W) uint8.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import orjson
import pydantic_core
import safetensors.numpy
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from safetensors import SafetensorError

from service.boxes import Box, boxes_of_array, check_boxes, parse_boxes
from service.errors import InvalidRequest

JSON_TYPE = "application/json"
SAFETENSORS_TYPE = "application/vnd.safetensors"
NPY_TYPE = "application/x-npy"
# Names under which clients send and ask for the same thing; the first is what we answer with.
SAFETENSORS_TYPES = (SAFETENSORS_TYPE, "application/safetensors", "application/octet-stream")
NPY_TYPES = (NPY_TYPE, "application/npy", "application/vnd.npy")
TENSOR_TYPES = (*SAFETENSORS_TYPES, *NPY_TYPES, JSON_TYPE)

BOXES = "boxes"  # the tensor beside `latents`, int64 (B, 4), that says where pictures lie

_FLOAT_TYPES = ("float16", "float32", "float64")
_NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class LatentsFile:
    """Latents (B, C, h, w) float32, and the pictures' boxes in their frames where the file tells.

    `boxes` are as they were sent, not checked.
    """

    latents: NDArray[np.float32]
    boxes: NDArray[Any] | None = None

    @property
    def content(self) -> list[Any]:
        """Shape, values and boxes, by which a repeated request is known."""
        boxes = None if self.boxes is None else self.boxes.tolist()
        return [list(self.latents.shape), self.latents.data.cast("B"), boxes]


@dataclass(frozen=True)
class Accepted:
    """Shapes of latents that are read: the model's (C, h, w), at most `max_latents` of them.

    max_grid: other h and w from 1 to these are read too; None: no others.
    """

    shape: tuple[int, int, int]
    max_latents: int
    max_grid: tuple[int, int] | None = None


def read_latents(data: bytes, media_type: str, accepted: Accepted) -> LatentsFile:
    """Latents from a request body; one (C, h, w) array is a batch of one.

    Args:
        data: the body.
        media_type: what the client says it is; `application/octet-stream` is told by its content.
        accepted: anything else is refused.

    Raises:
        InvalidRequest: 400 unreadable; 415 unknown type; 422 wrong shape, dtype or count, or
            values that are not finite.
    """
    if media_type in NPY_TYPES or data.startswith(_NPY_MAGIC):
        return LatentsFile(_checked(_read_npy(data, accepted), accepted))
    if media_type in SAFETENSORS_TYPES:
        tensors = _read_safetensors(data)
        boxes = tensors.pop(BOXES, None)
        return LatentsFile(_checked(_only_latents(tensors), accepted), boxes)
    if media_type == JSON_TYPE:
        return LatentsFile(_checked(_read_json(data), accepted))
    raise InvalidRequest(
        f"content-type is {media_type or 'missing'}: send one of {', '.join(TENSOR_TYPES)}",
        status=415,
        param="latents",
        code="unsupported_media_type",
    )


def boxes_to_keep(text: str, file: LatentsFile, frame: tuple[int, int]) -> list[Box]:
    """What to keep of each picture that is decoded to a frame (height, width), a box for each.

    `text` is boxes as `parse_boxes` reads them, `auto` for those of the file, `none` for none. An
    empty list keeps the whole frames.

    Raises:
        InvalidRequest: 422 malformed, not one for each, or not inside the frame; `param` is `box`,
            or `boxes` for those of the file.
    """
    if text == "none" or (text == "auto" and file.boxes is None):
        return []
    if text == "auto" and file.boxes is not None:
        boxes, param = boxes_of_array(file.boxes, param=BOXES), BOXES
    else:
        boxes, param = parse_boxes(text, param="box"), "box"
    check_boxes(boxes, count=len(file.latents), frame=frame, param=param)
    return boxes


def write_safetensors(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The arrays as one safetensors file."""
    # safetensors copies the buffer as it lies, so a transposed view would be written scrambled.
    return safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in arrays.items()})


def write_npy(array: NDArray[Any]) -> bytes:
    """The array as one npy file."""
    buffer = BytesIO()
    npy_format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def write_json(fields: Mapping[str, Any]) -> bytes:
    """Compact JSON; arrays become nested lists, of the shortest numbers that read back the same.

    Raises:
        ValueError: an array holds values that are not finite, which JSON does not have.
    """
    arrays = {k: np.ascontiguousarray(v) for k, v in fields.items() if isinstance(v, np.ndarray)}
    for name, array in arrays.items():
        if not np.isfinite(array).all():  # orjson would write null
            raise ValueError(f"{name} holds values that are not finite")
    return orjson.dumps({**fields, **arrays}, option=orjson.OPT_SERIALIZE_NUMPY)


def _malformed(message: str) -> InvalidRequest:
    return InvalidRequest(message, status=400, param="latents", code="invalid_latents")


def _wrong(message: str) -> InvalidRequest:
    return InvalidRequest(message, status=422, param="latents", code="invalid_latents")


def _read_safetensors(data: bytes) -> dict[str, NDArray[Any]]:
    try:
        return safetensors.numpy.load(data)
    except SafetensorError as error:
        raise _malformed(
            f"latents are not a readable safetensors file, it is truncated or damaged: {error}"
        ) from None
    except KeyError as error:
        raise _wrong(
            f"latents have dtype {error.args[0]}: send one of {', '.join(_FLOAT_TYPES)}"
        ) from None


def _only_latents(tensors: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    if "latents" in tensors:
        return tensors["latents"]
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    raise _wrong(f"the safetensors file holds {sorted(tensors)}: name one of its tensors `latents`")


def _read_npy(data: bytes, accepted: Accepted) -> NDArray[Any]:
    file = BytesIO(data)
    try:
        version = npy_format.read_magic(file)
        if version == (1, 0):
            dims, fortran, dtype = npy_format.read_array_header_1_0(file)
        else:
            dims, fortran, dtype = npy_format.read_array_header_2_0(file)
    except Exception as error:  # numpy reads the header as Python source: anything may come of it
        raise _malformed(f"latents are not a readable npy file: {error}") from None
    if dtype.hasobject:
        raise _wrong("latents are an npy file of Python objects, which is never read: send floats")
    # Both before reading, as numpy would allocate whatever the header claims.
    _check_dtype(dtype)
    _check_shape(dims, accepted)
    body = data[file.tell() :]
    expected = int(np.prod(dims)) * dtype.itemsize
    if len(body) != expected:
        raise _malformed(
            f"latents are an npy file of {expected} bytes of data, {len(body)} arrived: send all"
        )
    return np.frombuffer(body, dtype).reshape(dims, order="F" if fortran else "C")


def _read_json(data: bytes) -> NDArray[Any]:
    try:
        fields = pydantic_core.from_json(data, allow_inf_nan=True)
    except ValueError as error:
        raise InvalidRequest(
            f"the body is not valid JSON: {error}", status=400, code="invalid_json"
        ) from None
    if not isinstance(fields, dict) or set(fields) != {"latents"}:
        raise _wrong('the body must be a JSON object with one field: {"latents": [...]}')
    try:
        array = np.asarray(fields["latents"])
    except ValueError:
        raise _wrong("latents must be nested lists of equal length") from None
    if array.dtype.kind not in "iuf":
        raise _wrong("latents must be nested lists of numbers")
    return array.astype(np.float64)


def _checked(array: NDArray[Any], accepted: Accepted) -> NDArray[np.float32]:
    _check_dtype(array.dtype)
    _check_shape(array.shape, accepted)
    with np.errstate(over="ignore"):  # float64 above the range of float32 is reported below
        latents = np.ascontiguousarray(array, dtype=np.float32).reshape(-1, *array.shape[-3:])
    bad = np.argwhere(~np.isfinite(latents))
    if len(bad):
        place = ", ".join(str(index) for index in bad[0])
        raise _wrong(
            f"latents[{place}] is {latents[tuple(bad[0])]}, {len(bad)} values are not finite: "
            "send finite numbers"
        )
    return latents


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.name not in _FLOAT_TYPES:
        raise _wrong(f"latents have dtype {dtype.name}: send one of {', '.join(_FLOAT_TYPES)}")


def _check_shape(dims: tuple[int, ...], accepted: Accepted) -> None:
    batch = (1, *dims) if len(dims) == 3 else dims
    if len(batch) != 4 or not _fits(batch[1:], accepted):
        channels, height, width = accepted.shape
        taken = f"[B, {channels}, {height}, {width}]"
        if accepted.max_grid is not None:
            rows, columns = accepted.max_grid
            taken = f"[B, {channels}, h, w] with h 1 to {rows} and w 1 to {columns}"
        raise _wrong(f"latents have shape {list(dims)}: this model takes {taken}")
    if not 1 <= batch[0] <= accepted.max_latents:
        raise _wrong(f"latents hold {batch[0]} items: send 1 to {accepted.max_latents}")


def _fits(dims: tuple[int, ...], accepted: Accepted) -> bool:
    if accepted.max_grid is None:
        return dims == accepted.shape
    rows, columns = accepted.max_grid
    return dims[0] == accepted.shape[0] and 1 <= dims[1] <= rows and 1 <= dims[2] <= columns
