"""Sprites: shapes that differ, things from the committed atlas."""

import numpy as np
import pytest
from PIL import ImageFont

from training import sprites
from training.nouns import SHAPES, THING_CODE_POINTS, THINGS, plural
from training.sprites import OPAQUE, sprite, thing_image


def test_the_atlas_holds_every_thing_without_the_font(monkeypatch):
    def no_font(*_args, **_kwargs):
        raise OSError("the font is not installed")

    monkeypatch.setattr(ImageFont, "truetype", no_font)
    sprites._atlas.cache_clear()
    thing_image.cache_clear()
    assert tuple(sprites._atlas()[2]) == THINGS
    for thing in THINGS:
        alpha = np.asarray(thing_image(thing))[..., 3]
        assert (alpha > 127).mean() > 0.15, thing


def test_each_thing_has_a_picture_of_its_own():
    assert len(set(THING_CODE_POINTS.values())) == len(THINGS) >= 100
    assert not {*THINGS} & {*SHAPES}


@pytest.mark.parametrize("angle", [-8.0, 0.0, 8.0])
@pytest.mark.parametrize("side", [28, 60])
def test_shapes_differ_at_every_size_and_angle(side, angle):
    masks = {shape: sprite(shape, side, angle).mask for shape in SHAPES}
    for a in SHAPES:
        for b in SHAPES:
            if a != b:
                share = (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
                assert share < 0.85, (a, b)


@pytest.mark.parametrize("kind", [*SHAPES, "cat", "car", "pencil", "book"])
def test_turned_drawings_stay_in_their_box(kind):
    for angle in (-8.0, 8.0):
        coverage = sprite(kind, 60, angle).coverage
        rim = np.concatenate([coverage[0], coverage[-1], coverage[:, 0], coverage[:, -1]])
        assert rim.max() <= OPAQUE // 2


def test_edges_are_anti_aliased_and_the_inside_is_opaque():
    drawing = sprite("circle", 56, 0.0)
    coverage = drawing.coverage[..., 0]
    assert coverage[28, 28] == OPAQUE
    assert coverage[0, 0] == 0
    assert ((coverage > 0) & (coverage < OPAQUE)).sum() > 100
    assert coverage.sum() / OPAQUE == pytest.approx(np.pi * (0.94 * 28) ** 2, rel=0.01)


def test_the_box_bounds_the_mask():
    for kind in (*SHAPES, "cat"):
        drawing = sprite(kind, 52, 6.0)
        x0, y0, x1, y1 = drawing.box
        assert drawing.mask[y0:y1, x0:x1].sum() == drawing.mask.sum() > 0
        assert drawing.mask[y0, x0:x1].any()
        assert drawing.mask[y1 - 1, x0:x1].any()


def test_angles_turn_clockwise():
    # The apex of a triangle, its highest point, moves to the right; and so does a tree's crown.
    for kind in ("triangle", "tree"):
        upright = np.argwhere(sprite(kind, 60, 0.0).mask[:12])[:, 1].mean()
        turned = np.argwhere(sprite(kind, 60, 8.0).mask[:12])[:, 1].mean()
        assert turned > upright + 1, kind


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="blob"):
        sprite("blob", 56, 0.0)
    with pytest.raises(ValueError, match="4 pixels"):
        sprite("circle", 2, 0.0)


@pytest.mark.parametrize(
    ("kind", "many"), [("circle", "circles"), ("mouse", "mice"), ("cross", "crosses")]
)
def test_plurals(kind, many):
    assert plural(kind) == many
