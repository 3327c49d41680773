import io
import resource
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from service.api.uploads import (
    Upload,
    decode_base64,
    decode_image,
    decode_native_image,
    stack_uploads,
)
from service.errors import InvalidRequest
from service.sizes import Sizes

SIZE = (32, 32)  # height, width


def encoded(image: Image.Image, file_type: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_type, **options)
    return buffer.getvalue()


def decode(data: bytes, fit: str = "pad", max_pixels: int = 10_000_000) -> Upload:
    return decode_image(data, size=SIZE, fit=fit, max_pixels=max_pixels, param="image")


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels worth mentioning."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    pixels = zlib.compress(bytes(64))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.fixture
def scene() -> Image.Image:
    """32x32 noise: any resampling or conversion error shows."""
    values = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("options", [{"file_type": "PNG"}, {"file_type": "WEBP", "lossless": True}])
def test_a_picture_of_the_models_size_keeps_every_value(scene, options):
    upload = decode(encoded(scene, **options))
    assert upload.fitted == "none"
    assert upload.pixels.dtype == np.uint8
    np.testing.assert_array_equal(upload.pixels, np.asarray(scene).transpose(2, 0, 1))


def test_the_type_comes_from_the_content(scene):
    assert decode(encoded(scene, "JPEG", quality=95)).pixels.shape == (3, 32, 32)
    for data in (b"", b"hello, I am a text file", b"GIF89a" + bytes(40), b"%PDF-1.7"):
        with pytest.raises(InvalidRequest, match="send PNG, JPEG or WebP") as caught:
            decode(data)
        assert (caught.value.status, caught.value.param) == (415, "image")


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (12_000, 9_000), (4_000, 4_000)])
def test_pixels_are_counted_before_decoding(width, height):
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidRequest, match="limit is 10000000") as caught:
        decode(png_header(width, height))
    assert caught.value.status == 413
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 20_000


@pytest.mark.parametrize("file_type", ["PNG", "JPEG", "WEBP"])
def test_truncated_files_are_refused(scene, file_type):
    data = encoded(scene, file_type)
    refused = 0
    for kept in range(len(data) // 4, len(data) - 40, 7):
        with pytest.raises(InvalidRequest) as caught:
            decode(data[:kept])
        assert caught.value.status in (415, 422)
        refused += 1
    assert refused > 10


def status_of(data: bytes) -> int:
    """200 when the picture decodes, else the status of the refusal."""
    try:
        decode(data)
    except InvalidRequest as error:
        return error.status
    return 200


def test_damaged_files_never_raise_anything_else(scene):
    rng = np.random.default_rng(1)
    for file_type in ("PNG", "JPEG", "WEBP"):
        clean = np.frombuffer(encoded(scene, file_type), np.uint8)
        for _ in range(60):
            data = clean.copy()
            data[rng.integers(0, len(data), 5)] = rng.integers(0, 256, 5, dtype=np.uint8)
            assert status_of(data.tobytes()) in (200, 413, 415, 422)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (32, 32), "red")
    image.paste("blue", (0, 0, 32, 16))  # upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    pixels = decode(encoded(image, exif=exif)).pixels
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]
    assert pixels[:, -1, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(mode):
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 32))
    data = encoded(image.convert(mode))
    pixels = decode(data).pixels
    assert pixels[:, 8, 4].tolist() == [0, 0, 0]
    assert pixels[:, 8, 28].tolist() == [255, 255, 255]


def test_half_transparency_is_blended():
    data = encoded(Image.new("RGBA", (32, 32), (0, 0, 0, 128)))
    np.testing.assert_allclose(decode(data).pixels, 127, atol=1)


def test_sixteen_bits_are_scaled():
    ramp = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (32, 1))
    pixels = decode(encoded(Image.fromarray(ramp))).pixels
    np.testing.assert_allclose(pixels[0, 0], np.linspace(0, 255, 32), atol=1)


def test_cmyk_becomes_rgb():
    data = encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = decode(data).pixels[:, 16, 16]
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("file_type", ["PNG", "WEBP"])
def test_animations_are_refused(file_type):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], file_type, save_all=True, append_images=frames[1:])
    with pytest.raises(InvalidRequest, match="animation of 2 frames") as caught:
        decode(data)
    assert caught.value.status == 422


def test_every_fit_says_what_it_did():
    wide = Image.new("RGB", (64, 32), "red")
    wide.paste("blue", (48, 0, 64, 32))
    padded = decode(encoded(wide), "pad")
    assert padded.fitted == "pad 64x32 to 32x16 in 32x32"
    assert padded.pixels[:, 0, 16].tolist() == [255, 255, 255]
    assert padded.pixels[:, 16, 4].tolist() == [255, 0, 0]
    assert padded.pixels[:, 16, 30].tolist() == [0, 0, 255]
    cropped = decode(encoded(wide), "center-crop")
    assert cropped.fitted == "center-crop 64x32 to 32x32 in 32x32"
    assert cropped.pixels[:, 0, 30].tolist() == [255, 0, 0]
    stretched = decode(encoded(wide), "stretch")
    assert stretched.fitted == "stretch 64x32 to 32x32 in 32x32"
    assert stretched.pixels[:, 0, 30].tolist() == [0, 0, 255]


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (100, 31), (7, 5), (1, 5000), (32, 32)])
def test_the_box_holds_the_picture_and_nothing_else(size):
    upload = decode(encoded(Image.new("RGB", size, "black")))
    left, top, width, height = upload.box
    inside = upload.pixels[:, top : top + height, left : left + width]
    assert inside.max() == 0
    assert (upload.pixels == 255).sum() == upload.pixels.size - inside.size
    assert max(width, height) == 32
    # The source's aspect ratio, to half a pixel of the shorter side.
    assert min(width, height) == max(1, round(32 * min(size) / max(size)))


@pytest.mark.parametrize("fit", ["center-crop", "stretch"])
def test_without_bars_the_box_is_the_frame(fit):
    assert decode(encoded(Image.new("RGB", (64, 32))), fit).box == (0, 0, 32, 32)


SIZES = Sizes(model="tiny", own=SIZE, grid=(4, 4), other_sizes=True, max_side=64)


def native(image: Image.Image) -> Upload:
    return decode_native_image(encoded(image), sizes=SIZES, max_pixels=10**6, param="image")


@pytest.mark.parametrize(
    ("size", "frame", "fitted"),
    [
        ((40, 24), (24, 40), "none"),
        ((33, 17), (24, 40), "pad 33x17 to 33x17 in 40x24"),
        ((1, 64), (64, 8), "pad 1x64 to 1x64 in 8x64"),
        ((32, 32), (32, 32), "none"),
    ],
)
def test_native_keeps_every_pixel(size, frame, fitted):
    values = np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    upload = native(Image.fromarray(values))
    assert (upload.frame, upload.fitted) == (frame, fitted)
    left, top, width, height = upload.box
    inside = upload.pixels[:, top : top + height, left : left + width]
    np.testing.assert_array_equal(inside, values.transpose(2, 0, 1))


def test_native_has_a_limit():
    with pytest.raises(
        InvalidRequest, match=r"picture 65x3, which takes 72x8: at most 64"
    ) as caught:
        native(Image.new("RGB", (65, 3)))
    assert (caught.value.status, caught.value.param) == (422, "size")


def test_pictures_of_one_batch_share_a_frame():
    uploads = [native(Image.new("RGB", size)) for size in ((33, 17), (40, 24))]
    assert stack_uploads(uploads).shape == (2, 3, 24, 40)
    with pytest.raises(InvalidRequest, match=r"frames of 40x24, 24x40: send pictures of one size"):
        stack_uploads([*uploads, native(Image.new("RGB", (24, 40)))])


def test_extreme_shapes_still_fit():
    assert decode(encoded(Image.new("L", (1, 5000)))).pixels.shape == (3, 32, 32)
    assert decode(encoded(Image.new("1", (5000, 1))), "center-crop").pixels.shape == (3, 32, 32)


def test_base64():
    assert decode_base64("aGVs\nbG8=", param="images.0") == b"hello"
    assert decode_base64("data:image/png;base64,aGVsbG8=", param="images.0") == b"hello"
    for text in ("aGVsbG8", "héllo", "a*b=", "http://example.com/a.png"):
        with pytest.raises(InvalidRequest, match=r"images\.0 is not valid base64"):
            decode_base64(text, param="images.0")
