"""Whether a picture, as the judge reads it, shows the scene that was asked for."""

from collections import Counter
from dataclasses import dataclass
from itertools import permutations

from training.judge import FoundItem, Reading
from training.layout import EXTENTS, POSITIONS, anchor
from training.phrases import RELATIONS
from training.scenes import Item, Scene

# Between the largest small and the smallest large box.
_SIZE_LIMIT = (max(EXTENTS["small"]) + min(EXTENTS["large"])) / 2
_RELATION_WORDS = ("left of", "right of", "above", "over", "below", "under")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """loose: every asked item is there, in its colour, wherever it is and whatever else there is;
    color: every asked colour is there, on anything; background: its colour is right;
    place: the asked items are there, each where it should be;
    strict: exactly the asked items and nothing else, each in place and size, right background.
    """

    loose: bool
    color: bool
    background: bool
    place: bool
    strict: bool


def tells_relation(prompt: str) -> bool:
    """Whether a caption of two items says how one stands to the other instead of two places."""
    return any(f" {words} " in prompt for words in _RELATION_WORDS)


def nearest_position(item: FoundItem, size: str, image_size: int = 128) -> str:
    """The one of the nine positions whose anchor, for an item of `size`, is nearest."""

    def distance(position: str) -> float:
        x, y = anchor(position, size, image_size)
        return (item.center[0] - x) ** 2 + (item.center[1] - y) ** 2

    return min(POSITIONS, key=distance)


def item_size(item: FoundItem) -> str:
    """Which of the two sizes an item has, by the box of its best drawing."""
    return "small" if item.extent < _SIZE_LIMIT else "large"


def _same_look(found: FoundItem, asked: Item) -> bool:
    return (found.kind, found.color) == (asked.kind, asked.color)


def _related(found: tuple[FoundItem, ...], asked: tuple[Item, ...]) -> bool:
    """Whether two found items stand to each other as the two asked ones do."""
    relation = RELATIONS[asked[0].position, asked[1].position]
    dx = found[1].center[0] - found[0].center[0]
    dy = found[1].center[1] - found[0].center[1]
    along, across = {
        "to the left of": (dx, dy),
        "to the right of": (-dx, dy),
        "above": (dy, dx),
        "below": (-dy, dx),
    }[relation]
    return along > abs(across)


def _in_place(found: tuple[FoundItem, ...], scene: Scene, by_relation: bool) -> bool:
    asked = scene.items
    if not all(map(_same_look, found, asked)):
        return False
    if by_relation and len(asked) == 2 and (asked[0].position, asked[1].position) in RELATIONS:
        return _related(found, asked)
    return all(
        nearest_position(one, item.size, scene.image_size) == item.position
        for one, item in zip(found, asked, strict=True)
    )


def judge_scene(reading: Reading, scene: Scene, *, by_relation: bool = False) -> Verdict:
    """Compares a reading with the scene that a complete caption asked for.

    by_relation: the caption of two items told their relation, not their places.
    """
    num_asked = len(scene.items)
    looks = Counter((item.kind, item.color) for item in scene.items)
    found_looks = Counter((item.kind, item.color) for item in reading.items)
    colors = Counter(item.color for item in scene.items if item.color is not None)
    found_colors = Counter(item.color for item in reading.items)
    in_place = [
        chosen
        for chosen in permutations(reading.items[:6], num_asked)
        if _in_place(chosen, scene, by_relation)
    ]
    sized = any(
        all(item_size(one) == item.size for one, item in zip(chosen, scene.items, strict=True))
        for chosen in in_place
    )
    background = reading.background == scene.background.colors[0]
    return Verdict(
        loose=all(found_looks[look] >= number for look, number in looks.items()),
        color=all(found_colors[color] >= number for color, number in colors.items()),
        background=background,
        place=bool(in_place),
        strict=background and sized and len(reading.items) == num_asked,
    )
