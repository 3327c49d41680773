"""Edit triples: a source scene, an instruction, and the target scene that it asks for.

The target is the same description with one change, so every pixel that the change does not concern
is the same in both pictures. The items of a source all differ, so "the red circle" is one item.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from training.layout import extents, place
from training.phrases import (
    RELATIONS,
    background_words,
    item_words,
    place_phrase,
    reference,
    relation_phrase,
    template_words,
    with_article,
)
from training.stickers import (
    Item,
    Scene,
    World,
    pick,
    sample_angle,
    sample_background,
    sample_distinct_scene,
    sample_look,
    stands_out,
)

_MAX_ATTEMPTS = 1000

_TEMPLATES = {
    "recolour": (
        "make {item} {color}",
        "change the color of {item} to {color}",
        "turn {item} {color}",
        "color {item} {color}",
    ),
    "background": (
        "change the background to {short}",
        "make the background {short}",
        "put everything on {background}",
        "change the background to {background}",
    ),
    "replace": (
        "replace {item} with {new}",
        "change {item} to {new}",
        "swap {item} for {new}",
        "turn {item} into {new}",
    ),
    "remove": ("remove {item}", "delete {item}", "take away {item}", "erase {item}"),
    "add": ("add {new} {place}", "put {new} {place}", "draw {new} {place}", "{place} add {new}"),
    "move": (
        "move {item} to the {position}",
        "put {item} {place}",
        "shift {item} to the {position}",
    ),
    "resize": ("make {item} {change}", "make {item} look {change}"),
}
_LARGER, _SMALLER = ("larger", "bigger"), ("smaller",)


@dataclass(frozen=True, kw_only=True)
class EditTriple:
    """`target` is `source` with the one change, of that kind, that `instruction` asks for."""

    kind: str
    source: Scene
    target: Scene
    instruction: str


def _with_item(scene: Scene, index: int, item: Item) -> Scene:
    return replace(scene, items=(*scene.items[:index], item, *scene.items[index + 1 :]))


def _without_item(scene: Scene, index: int) -> Scene:
    return replace(scene, items=scene.items[:index] + scene.items[index + 1 :])


def _sample_num_items(rng: np.random.Generator, world: World) -> int:
    return 1 + int(rng.random() * world.max_items)


def _sample_source(rng: np.random.Generator, world: World) -> tuple[Scene, int]:
    """A scene and the index of the item that the edit concerns."""
    scene = sample_distinct_scene(rng, world, _sample_num_items(rng, world))
    return scene, int(rng.random() * len(scene.items))


def _say(rng: np.random.Generator, kind: str, **words: str) -> str:
    return pick(rng, _TEMPLATES[kind]).format(**words)


def _recolour(rng: np.random.Generator, world: World) -> EditTriple | None:
    scene, index = _sample_source(rng, world)
    item = scene.items[index]
    color = pick(rng, world.colors)
    taken = {(other.kind, other.color) for other in scene.items}
    if (
        item.color is None
        or (item.kind, color) in taken
        or not stands_out(item.kind, color, scene.background)
    ):
        return None
    text = _say(rng, "recolour", item=reference(rng, item, scene.items), color=color)
    target = _with_item(scene, index, replace(item, color=color))
    return EditTriple(kind="recolour", source=scene, target=target, instruction=text)


def _background(rng: np.random.Generator, world: World) -> EditTriple | None:
    scene = sample_distinct_scene(rng, world, _sample_num_items(rng, world))
    background = sample_background(rng, world)
    if background.colors[0] == scene.background.colors[0] or not all(
        stands_out(item.kind, item.color, background) for item in scene.items
    ):
        return None
    words = background_words(rng, background)
    short = words.replace("plain ", "").replace(" background", "", 1)
    if background.style in ("stripes", "dots", "checkers", "gradient"):
        short = with_article(
            words
        )  # "change the background to red and white striped" is no English
    text = _say(rng, "background", short=short, background=with_article(words))
    target = replace(scene, background=background)
    return EditTriple(kind="background", source=scene, target=target, instruction=text)


def _replace(rng: np.random.Generator, world: World) -> EditTriple | None:
    scene, index = _sample_source(rng, world)
    look = sample_look(rng, world, scene.background)
    if look is None:
        return None
    item, (kind, color) = scene.items[index], look
    # The same shape in another colour would be a recolouring.
    if kind == item.kind or look in {(other.kind, other.color) for other in scene.items}:
        return None
    new = replace(item, kind=kind, color=color, angle=sample_angle(rng, color))
    words = kind if color is None else f"{color} {kind}"
    old = reference(rng, item, scene.items)
    text = _say(rng, "replace", item=old, new=with_article(words))
    target = _with_item(scene, index, new)
    return EditTriple(kind="replace", source=scene, target=target, instruction=text)


def _remove(rng: np.random.Generator, world: World) -> EditTriple | None:
    scene, index = _sample_source(rng, world)
    text = _say(rng, "remove", item=reference(rng, scene.items[index], scene.items))
    target = _without_item(scene, index)
    return EditTriple(kind="remove", source=scene, target=target, instruction=text)


def _add(rng: np.random.Generator, world: World) -> EditTriple | None:
    target, index = _sample_source(rng, world)
    source, item = _without_item(target, index), target.items[index]
    where = place_phrase(rng, item.position)
    if len(source.items) == 1 and rng.random() < 0.4:
        other = source.items[0]
        relation = RELATIONS.get((item.position, other.position))
        if relation is not None:
            where = f"{relation_phrase(rng, relation)} {reference(rng, other, source.items)}"
    text = _say(rng, "add", new=with_article(item_words(rng, item)), place=where)
    return EditTriple(kind="add", source=source, target=target, instruction=text)


def _move(rng: np.random.Generator, world: World) -> EditTriple | None:
    scene, index = _sample_source(rng, world)
    item = scene.items[index]
    position = pick(rng, world.positions)
    if position == item.position:
        return None
    others = tuple((i.center, i.extent) for n, i in enumerate(scene.items) if n != index)
    centers = place(rng, ((position, item.size, item.extent),), scene.image_size, others)
    if centers is None:
        return None
    moved = replace(item, position=position, center=centers[0])
    text = _say(
        rng,
        "move",
        item=reference(rng, item, scene.items),
        position=position,
        place=place_phrase(rng, position),
    )
    target = _with_item(scene, index, moved)
    return EditTriple(kind="move", source=scene, target=target, instruction=text)


def _resize(rng: np.random.Generator, world: World) -> EditTriple | None:
    # A small item always fits where a large one stands, so both ways start from the large one.
    scene, index = _sample_source(rng, world)
    item = scene.items[index]
    if item.size != "large":
        return None
    side = pick(rng, extents("small", scene.image_size))
    small = _with_item(scene, index, replace(item, size="small", extent=side))
    shrink = rng.random() < 0.5
    source, target = (scene, small) if shrink else (small, scene)
    text = _say(
        rng,
        "resize",
        item=reference(rng, item, scene.items),
        change=pick(rng, _SMALLER if shrink else _LARGER),
    )
    return EditTriple(kind="resize", source=source, target=target, instruction=text)


_SAMPLERS: dict[str, Callable[[np.random.Generator, World], EditTriple | None]] = {
    "recolour": _recolour,
    "background": _background,
    "replace": _replace,
    "remove": _remove,
    "add": _add,
    "move": _move,
    "resize": _resize,
}


def sample_edit(rng: np.random.Generator, world: World) -> EditTriple:
    """Draws a kind of edit of the world, each as likely, and a triple of that kind.

    Raises ValueError if the world has no edit kinds, or none of that kind fits it.
    """
    if not world.edit_kinds:
        raise ValueError("edit_kinds is empty: this world has no edits")
    kind = pick(rng, world.edit_kinds)
    for _ in range(_MAX_ATTEMPTS):
        triple = _SAMPLERS[kind](rng, world)
        if triple is not None:
            return triple
    raise ValueError(f"no edit of kind {kind!r} fits this world; drop it from edit_kinds")


def instruction_words() -> set[str]:
    """Every word of the instruction templates, without those of phrases."""
    templates = [template for options in _TEMPLATES.values() for template in options]
    return template_words([*templates, *_LARGER, *_SMALLER])
