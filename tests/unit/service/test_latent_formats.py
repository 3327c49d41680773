import io
import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load, save

from service.api.latents.formats import (
    JSON_TYPE,
    NPY_TYPE,
    SAFETENSORS_TYPE,
    Accepted,
    read_latents,
    write_json,
    write_npy,
    write_safetensors,
)
from service.errors import InvalidRequest

SHAPE = (4, 2, 2)


def read(data: bytes, media_type: str) -> np.ndarray:
    return read_latents(data, media_type, Accepted(shape=SHAPE, max_latents=8)).latents


def npy(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.fixture
def latents() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, *SHAPE), dtype=np.float32)


def test_every_format_comes_back_unchanged(latents):
    for data, media_type in [
        (write_safetensors({"latents": latents, "mean": latents}), SAFETENSORS_TYPE),
        (write_safetensors({"anything": latents}), "application/octet-stream"),
        (write_npy(latents), NPY_TYPE),
        (write_npy(latents), "application/octet-stream"),
        (write_npy(np.asfortranarray(latents)), NPY_TYPE),
        (write_npy(latents.astype(">f4")), NPY_TYPE),
        (write_npy(latents.astype(np.float64)), NPY_TYPE),
        (write_json({"latents": latents}), JSON_TYPE),
    ]:
        found = read(data, media_type)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, latents)


def test_one_item_without_the_batch_axis(latents):
    for data, media_type in [
        (write_safetensors({"latents": latents[0]}), SAFETENSORS_TYPE),
        (write_npy(latents[0]), NPY_TYPE),
        (write_json({"latents": latents[0]}), JSON_TYPE),
    ]:
        np.testing.assert_array_equal(read(data, media_type), latents[:1])


def test_views_are_written_as_they_look(latents):
    turned = latents.transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(load(write_safetensors({"a": turned}))["a"], turned)


def test_half_precision_is_widened(latents):
    found = read(save({"latents": latents.astype(np.float16)}), SAFETENSORS_TYPE)
    np.testing.assert_allclose(found, latents, atol=2e-3)


@pytest.mark.parametrize("shape", [(4, 2, 3), (1, 4, 2, 3), (0, 4, 2, 2), (9, 4, 2, 2), (16,), ()])
def test_wrong_shapes(shape):
    array = np.zeros(shape, np.float32)
    for data, media_type in [
        (save({"latents": array}), SAFETENSORS_TYPE),
        (npy(array), NPY_TYPE),
        (write_json({"latents": array}), JSON_TYPE),
    ]:
        with pytest.raises(InvalidRequest, match="latents") as caught:
            read(data, media_type)
        assert (caught.value.status, caught.value.param) == (422, "latents")


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (2, 4, 3, 5), (4, 6, 1)])
def test_other_grids_up_to_a_limit(shape):
    accepted = Accepted(shape=SHAPE, max_latents=8, max_grid=(6, 5))
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    for data, media_type in [
        (save({"latents": array}), SAFETENSORS_TYPE),
        (npy(array), NPY_TYPE),
        (write_json({"latents": array}), JSON_TYPE),
    ]:
        found = read_latents(data, media_type, accepted).latents
        np.testing.assert_array_equal(found, array.reshape(-1, *shape[-3:]))
        with pytest.raises(InvalidRequest, match=r"this model takes \[B, 4, 2, 2\]"):
            read(data, media_type)


@pytest.mark.parametrize("shape", [(1, 4, 7, 5), (1, 4, 6, 6), (1, 3, 2, 2), (1, 4, 0, 2), (4, 2)])
def test_grids_beyond_the_limit(shape):
    accepted = Accepted(shape=SHAPE, max_latents=8, max_grid=(6, 5))
    array = np.zeros(shape, np.float32)
    for data, media_type in [(save({"latents": array}), SAFETENSORS_TYPE), (npy(array), NPY_TYPE)]:
        with pytest.raises(InvalidRequest, match=r"\[B, 4, h, w\] with h 1 to 6 and w 1 to 5"):
            read_latents(data, media_type, accepted)


def test_boxes_beside_latents(latents):
    boxes = np.array([[0, 1, 2, 3]] * 3)
    accepted = Accepted(shape=SHAPE, max_latents=8)
    for name in ("latents", "anything"):
        file = read_latents(save({name: latents, "boxes": boxes}), SAFETENSORS_TYPE, accepted)
        np.testing.assert_array_equal(file.latents, latents)
        np.testing.assert_array_equal(file.boxes, boxes)
    assert read_latents(save({"latents": latents}), SAFETENSORS_TYPE, accepted).boxes is None


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.complex64, np.bool_])
def test_wrong_dtypes(dtype):
    array = np.zeros((1, *SHAPE), dtype)
    for data, media_type in [(save({"latents": array}), SAFETENSORS_TYPE), (npy(array), NPY_TYPE)]:
        with pytest.raises(InvalidRequest, match="send one of float16, float32, float64") as caught:
            read(data, media_type)
        assert caught.value.status == 422


def test_dtypes_that_numpy_lacks():
    header = json.dumps(
        {"latents": {"dtype": "BF16", "shape": [1, *SHAPE], "data_offsets": [0, 32]}}
    ).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(32)
    with pytest.raises(InvalidRequest, match="dtype BF16"):
        read(data, SAFETENSORS_TYPE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(latents, value):
    latents[1, 2, 0, 1] = value
    body = json.dumps({"latents": latents.tolist()}).encode()
    for data, media_type in [
        (save({"latents": latents}), SAFETENSORS_TYPE),
        (npy(latents), NPY_TYPE),
        (body, JSON_TYPE),
    ]:
        with pytest.raises(
            InvalidRequest, match=r"latents\[1, 2, 0, 1\] is .* not finite"
        ) as caught:
            read(data, media_type)
        assert caught.value.status == 422


def test_numbers_beyond_float32():
    data = write_json({"latents": np.full(SHAPE, 1e39)})
    with pytest.raises(InvalidRequest, match="not finite"):
        read(data, JSON_TYPE)


def test_pickles_are_never_read(latents):
    data = npy(np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidRequest, match="never read"):
        read(data, NPY_TYPE)
    buffer = io.BytesIO()
    np.savez(buffer, latents=latents)
    with pytest.raises(InvalidRequest, match="not a readable npy file"):
        read(buffer.getvalue(), NPY_TYPE)


def test_an_npy_header_that_claims_more_than_arrived(latents):
    data = npy(latents)
    with pytest.raises(InvalidRequest, match=r"192 bytes of data, 92 arrived"):
        read(data[:-100], NPY_TYPE)
    huge = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    huge += b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 4, 2, 2), }".ljust(
        118
    )
    with pytest.raises(InvalidRequest, match="hold 99999999999 items"):
        read(huge, NPY_TYPE)


def test_damaged_safetensors(latents):
    data = save({"latents": latents})
    huge_header = struct.pack("<Q", 2**40) + data[8:]
    for broken in (data[:-4], data[:20], data[:4], b"", huge_header, b"\xff" * 64):
        with pytest.raises(InvalidRequest, match="not a readable safetensors file") as caught:
            read(broken, SAFETENSORS_TYPE)
        assert caught.value.status == 400


def test_several_tensors_without_the_name(latents):
    with pytest.raises(InvalidRequest, match="name one of its tensors `latents`"):
        read(save({"a": latents, "b": latents}), SAFETENSORS_TYPE)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 400),
        (b"[" * 5000, 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"latents": [], "extra": 1}', 422),
        (b'{"latents": "AAAA"}', 422),
        (b'{"latents": [["1"]]}', 422),
        (b'{"latents": [[1], [1, 2]]}', 422),
        (b'{"latents": [null]}', 422),
        (b'{"latents": [true]}', 422),
        (b'{"latents": [123456789012345678901234567890]}', 422),
    ],
)
def test_json_that_holds_no_latents(body, status):
    with pytest.raises(InvalidRequest) as caught:
        read(body, JSON_TYPE)
    assert caught.value.status == status


def test_unknown_media_types_are_named(latents):
    with pytest.raises(
        InvalidRequest, match=r"text/plain: send one of application/vnd\.safetensors"
    ):
        read(write_safetensors({"latents": latents}), "text/plain")
