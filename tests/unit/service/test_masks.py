"""What of an uploaded picture may change, in the model's frame."""

import io

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

from service.api.images.sources import Source, decode_mask
from service.api.uploads import Upload, decode_image
from service.errors import InvalidRequest

FRAME = (32, 32)  # height, width
MAX_PIXELS = 1_000_000


def encoded(image: Image.Image, file_type: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_type, **options)
    return buffer.getvalue()


def mask_file(alpha: np.ndarray, file_type: str = "PNG", **options: object) -> bytes:
    """A mask of an alpha channel (h, w); its colours are noise, which must not matter."""
    pixels = np.random.default_rng(0).integers(0, 256, (*alpha.shape, 4), dtype=np.uint8)
    pixels[..., 3] = alpha
    return encoded(Image.fromarray(pixels), file_type, **options)


def uploaded(width: int, height: int, fit: str = "pad") -> Upload:
    data = encoded(Image.new("RGB", (width, height), "black"))
    return decode_image(data, size=FRAME, fit=fit, max_pixels=MAX_PIXELS, param="image")


def decode(data: bytes, upload: Upload, fit: str = "pad") -> np.ndarray:
    return decode_mask(data, upload, fit=fit, max_pixels=MAX_PIXELS)


def refusal(data: bytes, upload: Upload, fit: str = "pad") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode(data, upload, fit)
    assert caught.value.param == "mask"
    return caught.value


@pytest.mark.parametrize(
    ("file_type", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("WEBP", {"quality": 80})]
)
def test_whatever_is_not_opaque_may_change(file_type, options):
    alpha = np.full(FRAME, 255, np.uint8)
    alpha[3, 4:8] = [0, 1, 128, 254]
    mask = decode(mask_file(alpha, file_type, **options), uploaded(32, 32))
    np.testing.assert_array_equal(mask, alpha < 255)


def test_palettes_and_grey_with_alpha():
    alpha = np.full(FRAME, 255, np.uint8)
    alpha[:16] = 0
    grey = Image.merge("LA", [Image.new("L", (32, 32)), Image.fromarray(alpha)])
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.paste(0, (0, 0, 32, 16))
    for data in (encoded(grey), encoded(palette, transparency=0)):
        np.testing.assert_array_equal(decode(data, uploaded(32, 32)), alpha < 255)


@pytest.mark.parametrize("fit", ["pad", "center-crop", "stretch"])
@pytest.mark.parametrize("size", [(64, 32), (32, 64), (100, 31), (7, 5), (300, 200), (33, 32)])
def test_the_mask_lies_where_its_picture_lies(size, fit):
    """A white rectangle on black, and the mask of that rectangle."""
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    hole = (
        slice(height // 3, max(height // 3 + 1, 2 * height // 3)),
        slice(width // 3, max(width // 3 + 1, 2 * width // 3)),
    )
    picture[hole] = 255
    alpha = 255 - picture[..., 0]
    upload = decode_image(
        encoded(Image.fromarray(picture)), size=FRAME, fit=fit, max_pixels=MAX_PIXELS, param="image"
    )
    mask = decode(mask_file(alpha), upload, fit)
    left, top, inner_width, inner_height = upload.box
    inside = upload.pixels[0, top : top + inner_height, left : left + inner_width]
    seen = mask[top : top + inner_height, left : left + inner_width]
    # The ringing of the picture's filter reaches further than the mask: compare where it is clear.
    assert seen[inside > 250].all()
    rows, columns = np.nonzero(seen)
    bright_rows, bright_columns = np.nonzero(inside > 127)
    for found, bright in ((rows, bright_rows), (columns, bright_columns)):
        assert abs(found.min() - bright.min()) <= 1
        assert abs(found.max() - bright.max()) <= 1


def test_bars_never_change():
    mask = decode(mask_file(np.zeros((16, 64), np.uint8)), uploaded(64, 16))
    assert mask.sum() == 32 * 8
    assert mask[12:20].all()


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_a_thin_stroke_survives(fit):
    """Every single pixel of 97x131 sets at least one pixel of the frame."""
    upload = uploaded(97, 131, fit)
    for place in [(0, 0), (130, 96), (65, 48), (17, 91), (64, 3)]:
        alpha = np.full((131, 97), 255, np.uint8)
        alpha[place] = 254
        mask = decode(mask_file(alpha), upload, fit)
        assert 1 <= mask.sum() <= 4
        row = (place[0] + 0.5) / 131 * upload.box.height + upload.box.top
        column = (place[1] + 0.5) / 97 * upload.box.width + upload.box.left
        found = np.argwhere(mask) + 0.5
        assert np.abs(found - [row, column]).max() <= 1.5


def test_orientation_is_applied_to_both():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    alpha = np.full((20, 30), 255, np.uint8)
    alpha[:, :3] = 0
    turned = encoded(Image.new("RGB", (30, 20)), exif=exif)
    upload = decode_image(turned, size=FRAME, fit="pad", max_pixels=MAX_PIXELS, param="image")
    assert upload.source_size == (30, 20)
    mask = decode(mask_file(alpha, exif=exif), upload)
    assert mask[:3, 16].all()
    assert not mask[5:].any()
    # A mask that was drawn on the upright picture has no orientation of its own.
    assert decode(mask_file(alpha.T.copy()), upload)[:3, 16].all()
    assert "is 30x20 and image is 20x30" in refusal(mask_file(alpha), upload).message


def test_masks_that_cannot_be_used():
    upload = uploaded(32, 32)
    opaque = refusal(mask_file(np.full(FRAME, 255, np.uint8)), upload)
    assert "opaque everywhere" in opaque.message
    for data in (encoded(Image.new("RGB", (32, 32))), encoded(Image.new("L", (32, 32)), "JPEG")):
        assert "has no transparency: send a PNG or WebP" in refusal(data, upload).message
    other = refusal(mask_file(np.zeros((32, 16), np.uint8)), upload)
    assert "is 16x32 and image is 32x32: send both in the same size" in other.message
    assert opaque.status == other.status == 422
    assert refusal(b"GIF89a" + bytes(40), upload).status == 415
    assert refusal(mask_file(np.zeros((2000, 2000), np.uint8)), upload).status == 413
    assert refusal(mask_file(np.zeros(FRAME, np.uint8))[:-90], upload).status == 422


def test_a_hole_that_is_cut_off():
    alpha = np.full((32, 96), 255, np.uint8)
    alpha[:, :8] = 0
    error = refusal(mask_file(alpha), uploaded(96, 32, "center-crop"), "center-crop")
    assert "only where fit center-crop cuts the picture off" in error.message
    assert decode(mask_file(alpha), uploaded(96, 32)).any()


def test_the_payload():
    upload = uploaded(32, 32)
    mask = np.zeros(FRAME, np.bool_)
    mask[2, 3] = True
    stored = load(Source(upload, mask).to_payload())
    assert stored["images"].shape == (1, 3, 32, 32)
    assert (stored["mask"].shape, stored["mask"].dtype) == ((1, 1, 32, 32), np.uint8)
    assert (stored["mask"][0, 0, 2, 3], stored["mask"].sum()) == (255, 255)
    assert set(load(Source(upload).to_payload())) == {"images"}
