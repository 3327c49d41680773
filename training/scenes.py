"""What a sticker scene holds, and the worlds: what a scene may hold.

A scene is a description, and the only source of its picture, its caption and its labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from training.backgrounds import SCENE_MAIN_COLOR
from training.layout import POSITIONS
from training.nouns import SHAPES, THINGS
from training.palette import COLORS, colors_contrast

SIZES = ("small", "large")
PATTERN_STYLES = ("gradient", "stripes", "dots", "checkers")
BACKGROUND_STYLES = ("plain", *PATTERN_STYLES, "scene")
SCENES = tuple(SCENE_MAIN_COLOR)
EDIT_KINDS = ("recolour", "background", "replace", "remove", "add", "move", "resize")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One sticker; `color` is None for a thing, which has its own colours.

    `center` is (x, y) and `extent` the side of the box, in pixels; `angle` in degrees, clockwise.
    """

    kind: str
    color: str | None
    size: str
    position: str
    center: tuple[float, float]
    extent: float
    angle: float


@dataclass(frozen=True, kw_only=True)
class Background:
    """`colors` starts with the main colour; `scene` is set for the style "scene" alone."""

    style: str
    colors: tuple[str, ...]
    scene: str | None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture as a description. `seed` decides the texture of a background scene."""

    background: Background
    items: tuple[Item, ...]
    image_size: int = 128
    seed: int


@dataclass(frozen=True, kw_only=True)
class World:
    """What may be drawn. Raises ValueError, naming the field, for anything that cannot be."""

    shapes: tuple[str, ...]
    colors: tuple[str, ...]
    things: tuple[str, ...]
    sizes: tuple[str, ...]
    positions: tuple[str, ...]
    background_styles: tuple[str, ...]
    scenes: tuple[str, ...]
    max_items: int
    edit_kinds: tuple[str, ...]
    image_size: int = 128
    same_kind_counts: bool

    def __post_init__(self) -> None:
        known: dict[str, Sequence[str]] = {
            "shapes": SHAPES,
            "colors": tuple(COLORS),
            "things": THINGS,
            "sizes": SIZES,
            "positions": POSITIONS,
            "background_styles": BACKGROUND_STYLES,
            "scenes": SCENES,
            "edit_kinds": EDIT_KINDS,
        }
        for field, names in known.items():
            chosen = getattr(self, field)
            unknown = [name for name in chosen if name not in names]
            if unknown:
                raise ValueError(f"{field}: cannot draw {unknown}; choose from {list(names)}")
            if len(set(chosen)) != len(chosen):
                raise ValueError(f"{field}: {list(chosen)} names something twice")
        for field in ("sizes", "positions", "background_styles", "colors"):
            if not getattr(self, field):
                raise ValueError(f"{field} must not be empty")
        if not self.shapes and not self.things:
            raise ValueError("shapes and things are both empty: there is nothing to draw")
        if not 1 <= self.max_items <= 3:
            raise ValueError(f"max_items must be 1, 2 or 3, got {self.max_items}")
        patterned = [style for style in self.background_styles if style in PATTERN_STYLES]
        for color in self.colors if patterned else ():
            if not any(colors_contrast(other, color) for other in self.colors):
                raise ValueError(
                    f"colors: {patterned} need a second color that contrasts with {color}"
                )
        if ("scene" in self.background_styles) != bool(self.scenes):
            raise ValueError("scenes and the background style 'scene' need each other")
        if self.image_size < 64 or self.image_size % 16:
            raise ValueError(f"image_size must be a multiple of 16 from 64, got {self.image_size}")


SHAPES_WORLD = World(
    shapes=SHAPES,
    colors=tuple(COLORS),
    things=(),
    sizes=("large",),
    positions=POSITIONS,
    background_styles=("plain",),
    scenes=(),
    max_items=2,
    edit_kinds=("recolour", "background", "replace", "remove", "add"),
    same_kind_counts=False,
)

COUNTED_WORLD = replace(SHAPES_WORLD, max_items=3, same_kind_counts=True)
"""Up to three shapes, equal ones among them: "two circles"."""

FULL_WORLD = World(
    shapes=SHAPES,
    colors=tuple(COLORS),
    things=THINGS,
    sizes=SIZES,
    positions=POSITIONS,
    background_styles=BACKGROUND_STYLES,
    scenes=SCENES,
    max_items=3,
    edit_kinds=EDIT_KINDS,
    same_kind_counts=True,
)
