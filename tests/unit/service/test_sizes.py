"""Sizes that a client asks for, against what a model encodes."""

import dataclasses

import pytest

from models.manifest import Manifest
from service.errors import InvalidRequest
from service.sizes import Sizes

SIZES = Sizes(model="tiny", own=(64, 128), grid=(4, 4), other_sizes=True, max_side=256)
FIXED = dataclasses.replace(SIZES, other_sizes=False)


def test_a_cell_is_what_one_latent_covers():
    assert SIZES.cell == (16, 32)
    assert SIZES.max_grid == (16, 8)
    assert SIZES.frame_of((3, 5)) == (48, 160)
    assert SIZES.frame_of(SIZES.grid) == SIZES.own


def test_the_limit_never_cuts_off_the_models_own_size():
    small = dataclasses.replace(SIZES, max_side=64)
    assert small.max_grid == (4, 4)
    assert small.parse("128x64") == (64, 128)
    assert small.native_frame((60, 120)) == (64, 128)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("auto", (64, 128)),
        ("128x64", (64, 128)),
        ("native", "native"),
        ("32x16", (16, 32)),
        ("256x256", (256, 256)),
        ("96x16", (16, 96)),
    ],
)
def test_sizes_that_are_encoded(text, size):
    assert SIZES.parse(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0x0", "multiple of 32 pixels from 32 on, the height of 16 from 16 on"),
        ("0x16", "multiple of 32"),
        ("33x16", "multiple of 32"),
        ("32x17", "multiple of 32"),
        ("288x16", "at most 256 pixels on a side"),
        ("32x272", "at most 256 pixels on a side"),
        ("999999968x16", "at most 256"),
        ("9999999999x16", "write WIDTHxHEIGHT"),
        ("", "write WIDTHxHEIGHT"),
        ("big", "write WIDTHxHEIGHT"),
        ("Auto", "write WIDTHxHEIGHT"),
        ("-32x16", "write WIDTHxHEIGHT"),
        ("32x16x3", "write WIDTHxHEIGHT"),
        ("32.0x16", "write WIDTHxHEIGHT"),
        ("nanxnan", "write WIDTHxHEIGHT"),
        ("32x16\n", "write WIDTHxHEIGHT"),
    ],
)
def test_sizes_that_are_refused(text, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        SIZES.parse(text)
    assert (caught.value.status, caught.value.param) == (422, "size")


@pytest.mark.parametrize("text", ["32x16", "native", "64x128"])
def test_a_model_of_one_size_says_so(text):
    assert FIXED.max_grid is None
    assert FIXED.parse("auto") == FIXED.parse("128x64") == (64, 128)
    with pytest.raises(InvalidRequest, match=r"tiny encodes at 128x64 only") as caught:
        FIXED.parse(text)
    assert (caught.value.status, caught.value.param) == (422, "size")


def test_native_frames_are_whole_cells():
    assert SIZES.native_frame((1, 1)) == (16, 32)
    assert SIZES.native_frame((16, 33)) == (16, 64)
    assert SIZES.native_frame((256, 256)) == (256, 256)
    with pytest.raises(InvalidRequest, match="257x2, which takes 288x16: at most 256"):
        SIZES.native_frame((2, 257))


def test_only_other_sizes_have_a_limit_of_pixels():
    SIZES.check_total(1000, SIZES.own, 10, "size")
    SIZES.check_total(4, (16, 32), 2048, "size")
    with pytest.raises(InvalidRequest, match="5 pictures of 32x16 are 2560 pixels") as caught:
        SIZES.check_total(5, (16, 32), 2048, "latents")
    assert (caught.value.status, caught.value.param) == (422, "latents")


def test_sizes_come_from_the_manifest():
    manifest = Manifest(
        name="tiny", tasks=["encode"], image_size=(64, 128), latent_shape=(8, 4, 4),
        other_sizes=True, latents_mean=[0.0], latents_std=[1.0], timestep_shift=1.0,
    )  # fmt: skip
    assert Sizes.of(manifest, 256) == SIZES
    with pytest.raises(ValueError, match=r"other_sizes: image_size \(62, 128\)"):
        Manifest.model_validate(manifest.model_dump() | {"image_size": (62, 128)})
