"""Arrays to and from bytes: safetensors, npy, JSON. Nothing here trusts a length it was told.

Latents are (B, C, h, w) float32, normalised; images are (B, 3, H, W) uint8.
"""

import json
import struct
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import pydantic_core
import safetensors.numpy
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from safetensors import SafetensorError

from service.errors import InvalidRequest

JSON_TYPE = "application/json"
SAFETENSORS_TYPE = "application/vnd.safetensors"
NPY_TYPE = "application/x-npy"
# Names under which clients send and ask for the same thing; the first is what we answer with.
SAFETENSORS_TYPES = (SAFETENSORS_TYPE, "application/safetensors", "application/octet-stream")
NPY_TYPES = (NPY_TYPE, "application/npy", "application/vnd.npy")
TENSOR_TYPES = (*SAFETENSORS_TYPES, *NPY_TYPES, JSON_TYPE)

_FLOAT_TYPES = ("float16", "float32", "float64")
_NPY_MAGIC = b"\x93NUMPY"


def read_latents(
    data: bytes, media_type: str, *, shape: tuple[int, int, int], max_latents: int
) -> NDArray[np.float32]:
    """Latents (B, C, h, w) float32 from a request body; one (C, h, w) array is a batch of one.

    Args:
        data: the body.
        media_type: what the client says it is; `application/octet-stream` is told by its content.
        shape: the model's (C, h, w).
        max_latents: largest B.

    Raises:
        InvalidRequest: 400 unreadable; 415 unknown type; 422 wrong shape, dtype or count, or
            values that are not finite.
    """
    if media_type in NPY_TYPES or data.startswith(_NPY_MAGIC):
        array = _read_npy(data, shape=shape, max_latents=max_latents)
    elif media_type in SAFETENSORS_TYPES:
        array = _read_safetensors(data)
    elif media_type == JSON_TYPE:
        array = _read_json(data)
    else:
        raise InvalidRequest(
            f"content-type is {media_type or 'missing'}: send one of {', '.join(TENSOR_TYPES)}",
            status=415,
            param="latents",
            code="unsupported_media_type",
        )
    return _checked(array, shape, max_latents)


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
    """Compact JSON; arrays become nested lists."""
    plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in fields.items()}
    return json.dumps(plain, allow_nan=False, separators=(",", ":")).encode()


def _malformed(message: str) -> InvalidRequest:
    return InvalidRequest(message, status=400, param="latents", code="invalid_latents")


def _wrong(message: str) -> InvalidRequest:
    return InvalidRequest(message, status=422, param="latents", code="invalid_latents")


def _read_safetensors(data: bytes) -> NDArray[Any]:
    try:
        tensors = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise _malformed(
            f"latents are not a readable safetensors file, it is truncated or damaged: {error}"
        ) from None
    except KeyError as error:
        raise _wrong(
            f"latents have dtype {error.args[0]}: send one of {', '.join(_FLOAT_TYPES)}"
        ) from None
    if "latents" in tensors:
        return tensors["latents"]
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    raise _wrong(f"the safetensors file holds {sorted(tensors)}: name one of its tensors `latents`")


def _read_npy(data: bytes, *, shape: tuple[int, int, int], max_latents: int) -> NDArray[Any]:
    file = BytesIO(data)
    try:
        version = npy_format.read_magic(file)
        if version == (1, 0):
            dims, fortran, dtype = npy_format.read_array_header_1_0(file)
        else:
            dims, fortran, dtype = npy_format.read_array_header_2_0(file)
    except (ValueError, EOFError, struct.error) as error:
        raise _malformed(f"latents are not a readable npy file: {error}") from None
    if dtype.hasobject:
        raise _wrong("latents are an npy file of Python objects, which is never read: send floats")
    # Both before reading, as numpy would allocate whatever the header claims.
    _check_dtype(dtype)
    _check_shape(dims, shape, max_latents)
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


def _checked(
    array: NDArray[Any], shape: tuple[int, int, int], max_latents: int
) -> NDArray[np.float32]:
    _check_dtype(array.dtype)
    _check_shape(array.shape, shape, max_latents)
    with np.errstate(over="ignore"):  # float64 above the range of float32 is reported below
        latents = np.ascontiguousarray(array, dtype=np.float32).reshape(-1, *shape)
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


def _check_shape(dims: tuple[int, ...], shape: tuple[int, int, int], max_latents: int) -> None:
    batch = (1, *dims) if len(dims) == 3 else dims
    if len(batch) != 4 or batch[1:] != shape:
        channels, height, width = shape
        raise _wrong(
            f"latents have shape {list(dims)}: this model takes [B, {channels}, {height}, {width}]"
        )
    if not 1 <= batch[0] <= max_latents:
        raise _wrong(f"latents hold {batch[0]} items: send 1 to {max_latents}")
