"""Pictures of any kind become RGB squares by the paper's rules, pairs by the same crop."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.unit.training.sample_files import damaged, encoded, picture
from training.image_files import MAX_ASPECT, SkippedError, read_picture
from training.transforms import (
    Framing,
    center_crop,
    fit_short_side,
    names_a_side,
    same_size,
    stack,
    to_float,
)

RANDOM = Framing(rule="random", image_size=256)
CENTER = Framing(rule="center", image_size=16)


def ramp(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards, both from 0 to 255."""
    red = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([red, green, 0 * red], -1).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((500, 375), (512, 384)), ((375, 500), (384, 512)), ((100, 33), (1163, 384))],
)
def test_the_short_side_is_fitted(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert fit_short_side(Image.new("RGB", size), 384).size == fitted


def test_a_fitted_picture_is_left_as_it_is() -> None:
    image = picture(3, 40, 30)
    assert fit_short_side(image, 30) is image


@pytest.mark.parametrize("size", [(16, 16), (100, 16), (33, 40), (257, 300), (7, 9)])
def test_center_crop_keeps_the_middle(size: tuple[int, int]) -> None:
    square = np.asarray(center_crop(ramp(*size), 16), dtype=float)
    assert square.shape == (16, 16, 3)
    assert square[..., 0].mean() == pytest.approx(127.5, abs=12)
    assert square[..., 1].mean() == pytest.approx(127.5, abs=12)
    span = 255 * min(size) / size[0] * 15 / 16
    assert np.ptp(square[8, :, 0]) == pytest.approx(span, rel=0.15), "nothing is squashed"


def test_random_crops_are_384_to_256_and_reach_every_place() -> None:
    image = ramp(768, 384)
    rng = np.random.default_rng(0)
    corners = []
    for _ in range(200):
        (square,) = RANDOM.apply([image], "", rng)
        assert square.size == (256, 256)
        corners.append(square.getpixel((0, 0))[:2])
    red, green = np.array(corners).T
    assert red.min() < 10
    assert red.max() == pytest.approx(255 * (768 - 256) / 768, abs=10)
    assert green.max() == pytest.approx(255 * (384 - 256) / 384, abs=4)


@pytest.mark.parametrize("framing", [RANDOM, CENTER], ids=["random", "center"])
def test_the_pictures_of_a_pair_stay_aligned(framing: Framing) -> None:
    source = ramp(300, 200)
    target = Image.eval(source, lambda value: 255 - value)
    for seed in range(6):
        ours, theirs = framing.apply([source, target], "", np.random.default_rng(seed))
        difference = np.asarray(ours, dtype=int) + np.asarray(theirs, dtype=int) - 255
        assert np.abs(difference).max() <= 3  # rounding, once for each resize


def test_a_target_of_another_resolution_is_brought_to_the_sources() -> None:
    pair = same_size([ramp(300, 200), ramp(151, 100)])
    assert [image.size for image in pair] == [(300, 200)] * 2
    with pytest.raises(SkippedError, match="shapes of the pair differ"):
        same_size([ramp(300, 200), ramp(200, 200)])


def flips(text: str) -> int:
    image, rng = ramp(32, 32), np.random.default_rng(0)
    squares = [CENTER.apply([image], text, rng)[0] for _ in range(100)]
    return sum(square.getpixel((0, 0))[0] > 127 for square in squares)


def test_half_are_flipped_but_not_where_the_text_names_a_side() -> None:
    assert 35 < flips("a cat on a mat") < 65
    assert flips("move the cat to the LEFT") == 0


@pytest.mark.parametrize(
    ("text", "named"),
    [("on the right.", True), ("a bright cleft", False), ("Mirrored", True), ("", False)],
)
def test_sides_are_found_as_words(text: str, named: bool) -> None:
    assert names_a_side(text) is named


def test_stacked_pictures_keep_their_pixels() -> None:
    image = picture(7, 5, 4)
    images = stack([image, image])
    assert images.shape == (2, 3, 4, 5)
    assert images[1, 0, 2, 3] == image.getpixel((3, 2))[0]
    assert to_float(images).mul(255).round().byte().equal(images)


@pytest.mark.parametrize("name", damaged())
def test_damage_has_a_reason(name: str) -> None:
    with pytest.raises(SkippedError) as caught:
        read_picture(damaged()[name])
    assert caught.value.reason == name.removesuffix(" png")


def test_a_picture_just_short_of_a_strip_is_used() -> None:
    image = Image.new("RGB", (round(4 * MAX_ASPECT), 4))
    assert read_picture(encoded(image)).size == image.size


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_a_file_cut_anywhere_is_used_or_skipped(cut: int) -> None:
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        data = encoded(picture(1), kind)
        try:
            assert read_picture(data[:cut]).mode == "RGB"
        except SkippedError:
            continue


def test_bytes_changed_anywhere_are_used_or_skipped() -> None:
    rng = np.random.default_rng(4)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        for _ in range(60):
            data = bytearray(encoded(picture(1), kind))
            for place in rng.integers(len(data), size=4):
                data[place] = rng.integers(256)
            try:
                assert read_picture(bytes(data)).mode == "RGB"
            except SkippedError:
                continue


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new("L", (6, 6), 255)
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    assert read_picture(encoded(image, kind)).mode == "RGB"


@pytest.mark.parametrize("kind", ["DDS", "EPS", "ICO", "TGA"])
def test_other_formats_are_not_tried(kind: str) -> None:
    with pytest.raises(SkippedError, match="not an image"):
        read_picture(encoded(picture(1), kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "MPO"])
def test_usual_formats_are_read(kind: str) -> None:
    assert read_picture(encoded(picture(1), kind)).size == picture(1).size


def test_transparent_parts_are_white() -> None:
    layer = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    layer.putpixel((1, 0), (0, 0, 0, 0))
    shown = read_picture(encoded(layer))
    assert [shown.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


def test_pictures_are_upright() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned back, clockwise
    ramp(40, 20).save(buffer, "PNG", exif=exif)
    shown = read_picture(buffer.getvalue())
    assert shown.size == (20, 40)
    assert shown.getpixel((0, 39))[0] > 200
