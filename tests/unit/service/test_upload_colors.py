"""Every kind of pixel that a picture file can hold, as 8-bit sRGB."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from service.api.uploads import decode_file, decode_image

MAX_PIXELS = 10_000


def encoded(image: Image.Image, file_type: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_type, **options)
    return buffer.getvalue()


def decode(image: Image.Image, file_type: str = "PNG", **options: object) -> Image.Image:
    return decode_file(encoded(image, file_type, **options), max_pixels=MAX_PIXELS, param="image")


def profile_bytes(profile: object) -> bytes:
    return ImageCms.ImageCmsProfile(profile).tobytes()


def wide_gamut_profile() -> bytes:
    """sRGB's curves with its red and green colorants exchanged, so a mistake cannot be missed."""
    data = bytearray(profile_bytes(ImageCms.createProfile("sRGB")))
    count = int.from_bytes(data[128:132], "big")
    offsets = {}
    for index in range(count):
        entry = 132 + 12 * index
        offsets[bytes(data[entry : entry + 4])] = entry + 4
    red, green = offsets[b"rXYZ"], offsets[b"gXYZ"]
    data[red : red + 8], data[green : green + 8] = data[green : green + 8], data[red : red + 8]
    return bytes(data)


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (24, 32, 4), dtype=np.uint8)


def test_modes_without_transparency(noise):
    grey = noise[..., 0]
    np.testing.assert_array_equal(np.asarray(decode(Image.fromarray(grey)))[..., 1], grey)
    bits = Image.fromarray(grey).convert("1")
    shown = np.asarray(decode(bits))
    np.testing.assert_array_equal(shown[..., 2], np.asarray(bits).astype(np.uint8) * 255)
    palette = Image.fromarray(noise[..., :3]).quantize(17)
    np.testing.assert_array_equal(np.asarray(decode(palette)), np.asarray(palette.convert("RGB")))


def test_alpha_is_kept_beside_the_colours(noise):
    for file_type, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        shown = decode(Image.fromarray(noise), file_type, **options)
        assert shown.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(shown), noise)
    grey_alpha = Image.fromarray(np.ascontiguousarray(noise[..., 2:]), "LA")
    shown = np.asarray(decode(grey_alpha))
    np.testing.assert_array_equal(shown, np.stack([noise[..., 2]] * 3 + [noise[..., 3]], -1))


@pytest.mark.parametrize(
    ("mode", "key"), [("L", 7), ("RGB", (7, 7, 7)), ("P", 7), ("1", 1), ("I;16", 7 * 257)]
)
def test_one_colour_may_be_transparent(mode, key):
    image = Image.new(mode, (8, 8), 0)
    if mode == "P":
        image.putpalette([value for index in range(256) for value in (index, index, index)])
    image.paste(key if isinstance(key, tuple) else int(key), (0, 0, 4, 8))
    shown = decode(image, transparency=key)
    assert shown.mode == "RGBA"
    alpha = np.asarray(shown)[..., 3]
    assert (alpha[:, :4] == 0).all()
    assert (alpha[:, 4:] == 255).all()


def test_palettes_with_many_transparencies():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.paste(1, (0, 0, 2, 4))
    shown = np.asarray(decode(image, transparency=bytes([128, 0])))
    assert shown[0, 0].tolist() == [200, 100, 50, 0]
    assert shown[0, 3].tolist() == [10, 20, 30, 128]


def test_profiles_are_followed():
    red = Image.new("RGB", (16, 16), (255, 0, 0))
    exchanged = wide_gamut_profile()
    for file_type in ("PNG", "JPEG", "WEBP"):
        shown = np.asarray(decode(red, file_type, icc_profile=exchanged, quality=100))
        assert shown[8, 8, 1] > 240, file_type
        assert shown[8, 8, 0] < 15, file_type


def test_the_alpha_channel_is_no_colour(noise):
    shown = decode(Image.fromarray(noise), icc_profile=wide_gamut_profile())
    np.testing.assert_array_equal(np.asarray(shown)[..., 3], noise[..., 3])
    assert (np.asarray(shown)[..., :3] != noise[..., :3]).any()


def test_an_srgb_profile_changes_nothing(noise):
    pixels = noise[..., :3]
    srgb = profile_bytes(ImageCms.createProfile("sRGB"))
    shown = decode(Image.fromarray(pixels), icc_profile=srgb)
    np.testing.assert_array_equal(np.asarray(shown), pixels)


def test_unusable_profiles_are_ignored(noise):
    pixels = noise[..., :3]
    lab = profile_bytes(ImageCms.createProfile("LAB"))
    for profile in (b"no profile", bytes(200), wide_gamut_profile()[:300], lab):
        shown = decode(Image.fromarray(pixels), icc_profile=profile)
        np.testing.assert_array_equal(np.asarray(shown), pixels)
    grey = noise[..., 0]
    shown = decode(Image.fromarray(grey), icc_profile=wide_gamut_profile())
    np.testing.assert_array_equal(np.asarray(shown)[..., 0], grey)


def test_cmyk_with_a_foreign_profile():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = encoded(image, "JPEG", quality=100, icc_profile=wide_gamut_profile())
    upload = decode_image(data, size=(16, 16), fit="pad", max_pixels=MAX_PIXELS, param="image")
    assert upload.pixels[0].min() > 200


def test_sixteen_bit_colours():
    """Pillow keeps the higher byte of each."""
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    values = np.array([[[0, 32768, 65535], [257, 514, 40000]]], np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    shown = np.asarray(decode_file(data, max_pixels=MAX_PIXELS, param="image")).astype(int)
    assert np.abs(shown - values / 257).max() <= 1
