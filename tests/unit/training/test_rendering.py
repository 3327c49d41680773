"""Pictures, masks, boxes and patch labels agree with the scene and with each other."""

import dataclasses

import numpy as np
import pytest

from training.backgrounds import NUM_TEXTURES, paint_background
from training.palette import COLORS, lab
from training.rendering import PATCH_KINDS, patch_labels, render
from training.scenes import SCENES, Background, Item, Scene
from training.sprites import OPAQUE, sprite
from training.stickers import FULL_WORLD, SHAPES_WORLD, sample_scene

WHITE = Background(style="plain", colors=("white",), scene=None)


def item(**changes):
    base = Item(
        kind="circle",
        color="red",
        size="large",
        position="center",
        center=(64.0, 64.0),
        extent=56,
        angle=0.0,
    )
    return dataclasses.replace(base, **changes)


def scene(*items, background=WHITE, **changes):
    return Scene(background=background, items=items, seed=0, **changes)


@pytest.fixture(scope="module")
def sampled():
    rng = np.random.default_rng(1)
    return [sample_scene(rng, world) for world in (SHAPES_WORLD, FULL_WORLD) for _ in range(150)]


def test_the_same_scene_gives_the_same_pixels(sampled):
    for one in sampled[::10]:
        first, second = render(one), render(dataclasses.replace(one))
        assert first.image.shape == (128, 128, 3)
        assert first.image.dtype == np.uint8
        np.testing.assert_array_equal(first.image, second.image)


def test_boxes_bound_the_masks(sampled):
    for one in sampled:
        rendering = render(one)
        assert rendering.masks.shape == (len(one.items), 128, 128)
        assert rendering.boxes.shape == (len(one.items), 4)
        for mask, (x0, y0, x1, y1) in zip(rendering.masks, rendering.boxes, strict=True):
            rows, columns = np.nonzero(mask)
            assert (columns.min(), rows.min()) == (x0, y0)
            assert (columns.max() + 1, rows.max() + 1) == (x1, y1)


def test_masks_of_a_scene_share_no_pixel(sampled):
    for one in sampled:
        assert render(one).masks.sum(axis=0).max() <= 1


def test_shapes_have_their_colour_and_the_rest_is_background():
    rendering = render(scene(item(color="blue")))
    opaque = sprite("circle", 56, 0.0).coverage[..., 0] == OPAQUE
    assert (rendering.image[36:92, 36:92][opaque] == COLORS["blue"]).all()
    outside = np.ones((128, 128), dtype=bool)
    outside[36:92, 36:92] = False
    assert (rendering.image[outside] == COLORS["white"]).all()


def test_extreme_contrast_does_not_wrap_around():
    black = Background(style="plain", colors=("black",), scene=None)
    for ground, color in ((WHITE, "black"), (black, "white")):
        image = render(scene(item(color=color), background=ground)).image
        assert image.min() >= COLORS["black"][0]
        assert image.max() <= COLORS["white"][0]


def test_an_item_that_is_covered_loses_its_mask_there():
    below, above = item(), item(kind="square", color="blue", center=(80.0, 64.0))
    rendering = render(scene(below, above))
    assert not (rendering.masks[0] & rendering.masks[1]).any()
    alone = render(scene(below))
    assert rendering.masks[0].sum() < alone.masks[0].sum()
    assert rendering.boxes[0, 2] < alone.boxes[0, 2]


def test_an_item_beyond_the_edge_is_cut_off():
    rendering = render(scene(item(center=(0.0, 64.0)), item(kind="star", center=(-90.0, 64.0))))
    assert rendering.boxes[0].tolist()[0] == 0
    assert rendering.masks[0, 64, 0]
    assert not rendering.masks[1].any()
    assert rendering.boxes[1].tolist() == [0, 0, 0, 0]


def test_a_shape_without_colour_is_refused():
    with pytest.raises(ValueError, match="circle"):
        render(scene(item(color=None)))


def test_drawing_leaves_the_shared_background_alone():
    before = paint_background("plain", ("white",), None, 0, 128).copy()
    render(scene(item()))
    np.testing.assert_array_equal(paint_background("plain", ("white",), None, 0, 128), before)


@pytest.mark.parametrize("style", ["gradient", "stripes", "dots", "checkers"])
def test_patterns_show_both_colours(style):
    image = paint_background(style, ("red", "white"), None, 0, 128).reshape(-1, 3)
    for color in ("red", "white"):
        assert (image == COLORS[color]).all(axis=1).mean() > 1 / 256
    if style == "dots":  # the main colour is the ground
        assert (image == COLORS["red"]).all(axis=1).mean() > 0.6


@pytest.mark.parametrize("place", SCENES)
def test_scenes_have_textures_that_the_seed_chooses(place):
    textures = [paint_background("scene", (), place, n, 128) for n in range(NUM_TEXTURES)]
    assert not np.array_equal(textures[0], textures[1])
    means = np.array([lab(texture).mean(axis=(0, 1)) for texture in textures])
    assert means.std(axis=0).max() < 4  # another texture, the same place


def test_patch_labels_of_a_known_scene():
    # A square of 60 pixels fills the patches around the centre and no patch at the rim.
    one = scene(item(kind="square", color="green", extent=60))
    labels = patch_labels(one, render(one))
    kind, color = labels.kind.reshape(8, 8), labels.color.reshape(8, 8)
    assert (kind[3:5, 3:5] == PATCH_KINDS.index("square")).all()
    assert (color[3:5, 3:5] == 1 + list(COLORS).index("green")).all()
    assert (labels.coverage.reshape(8, 8)[3:5, 3:5] == 1).all()
    assert not kind[0].any()
    assert not color[:, 0].any()
    assert labels.background == list(COLORS).index("white")


def test_patch_labels_of_sampled_scenes(sampled):
    for one in sampled:
        rendering = render(one)
        labels = patch_labels(one, rendering)
        assert labels.kind.shape == labels.color.shape == labels.coverage.shape == (64,)
        assert (labels.kind.dtype, labels.coverage.dtype) == (np.int64, np.float32)
        assert labels.coverage.sum() * 256 == pytest.approx(rendering.masks.sum())
        shown = {PATCH_KINDS[kind] for kind in labels.kind} - {"background"}
        assert shown == {thing.kind for thing in one.items}
        colored = {list(COLORS)[color - 1] for color in labels.color if color}
        assert colored == {thing.color for thing in one.items} - {None}


def test_an_empty_scene_is_background_everywhere():
    labels = patch_labels(scene(), render(scene()))
    assert not labels.kind.any()
    assert not labels.coverage.any()


def test_a_patch_that_does_not_divide_the_image_is_refused():
    with pytest.raises(ValueError, match="patch 20"):
        patch_labels(scene(), render(scene()), patch=20)


@pytest.mark.parametrize("image_size", [64, 256])
def test_scenes_scale_with_the_image(image_size):
    world = dataclasses.replace(FULL_WORLD, image_size=image_size)
    rng = np.random.default_rng(2)
    for _ in range(20):
        one = sample_scene(rng, world)
        rendering = render(one)
        assert rendering.image.shape == (image_size, image_size, 3)
        share = rendering.masks.mean(axis=(1, 2))
        assert (share > 0.005).all()
        assert patch_labels(one, rendering, patch=image_size // 8).kind.shape == (64,)
