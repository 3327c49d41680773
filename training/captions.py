"""Captions of scenes: a small grammar with synonyms and varied word order.

At most MAX_WORDS words, lower case, no punctuation; every word is in `vocabulary()`. Two items with
two positions of one row or column are told by their relation, which stands for exactly those
positions; all others by their places.
"""

import numpy as np

from training.edits import instruction_words
from training.layout import PAIR_AND_ONE
from training.phrases import (
    FORMATIONS,
    NUMBER_WORDS,
    PREPOSITIONS,
    RELATIONS,
    background_words,
    item_phrase,
    item_words,
    on_background,
    phrase_words,
    place_phrase,
    relation_phrase,
    template_words,
)
from training.stickers import Item, Scene, pick

MAX_WORDS = 22

_OMIT_BACKGROUND_SHARE = 0.2
OMIT_PLACES_SHARE = 0.2

_OPENING_SHARE = 0.12

_OPENINGS = ("a picture of {text}", "an image of {text}", "a drawing of {text}")
_ONE_TEMPLATES = ("{item} {place}", "{item} {place}", "{place} {item}")
_EACH_TEMPLATES = ("{a} {at_a} and {b} {at_b}", "{at_a} {a} and {at_b} {b}")
_WHOLE_TEMPLATES = (
    "{items} {on_background}",
    "{items} {on_background}",
    "{on_background} {items}",
    "{background} with {items}",
)
_THREE_TEMPLATE = "{a} {b} and {c}"
# Where things are is said briefly; the noun phrases and the background do not change.
_SHORT_TEMPLATE = "{words} {position}"
_SHORT_WHOLE_TEMPLATE = "{items} on {background}"


def caption(
    scene: Scene,
    rng: np.random.Generator,
    *,
    complete: bool = False,
    omit_places: float = OMIT_PLACES_SHARE,
) -> str:
    """Says what the scene shows.

    `complete` names background, kinds, colours, counts, places and the size of small items, so that
    the picture can be judged from the words; otherwise background or places are sometimes left out,
    places with the probability `omit_places`.
    """
    with_places = complete or rng.random() >= omit_places
    with_background = complete or rng.random() >= _OMIT_BACKGROUND_SHARE
    if not scene.items:
        return background_words(rng, scene.background)
    items = _items_clause(rng, scene.items) if with_places else _items_only(rng, scene.items)
    text = _with_background(rng, scene, items) if with_background else items
    if not complete and rng.random() < _OPENING_SHARE and not _starts_with_place(text):
        text = pick(rng, _OPENINGS).format(text=text)
    return text if len(text.split()) <= MAX_WORDS else _short(rng, scene)


def _starts_with_place(text: str) -> bool:
    return text.split(maxsplit=1)[0] in PREPOSITIONS


def _with_background(rng: np.random.Generator, scene: Scene, items: str) -> str:
    background = scene.background
    template = pick(rng, _WHOLE_TEMPLATES)
    words = background_words(rng, background)
    # No "background with on the left a star", no "background with white dots with a star".
    if _starts_with_place(items) or " with " in words:
        template = _WHOLE_TEMPLATES[0]
    return template.format(
        items=items, background=words, on_background=on_background(rng, background)
    )


def _groups(items: tuple[Item, ...]) -> list[list[Item]]:
    """Items that look the same, together, in the order of their first."""
    groups: dict[tuple[str, str | None], list[Item]] = {}
    for item in items:
        groups.setdefault((item.kind, item.color), []).append(item)
    return list(groups.values())


def _items_only(rng: np.random.Generator, items: tuple[Item, ...]) -> str:
    phrases = [item_phrase(rng, group[0], len(group)) for group in _groups(items)]
    return _join([phrases[i] for i in rng.permutation(len(phrases))])


def _join(phrases: list[str]) -> str:
    if len(phrases) == 3:
        return _THREE_TEMPLATE.format(a=phrases[0], b=phrases[1], c=phrases[2])
    return " and ".join(phrases)


def _items_clause(rng: np.random.Generator, items: tuple[Item, ...]) -> str:
    groups = _groups(items)
    if len(items) == 1:
        place = place_phrase(rng, items[0].position)
        return pick(rng, _ONE_TEMPLATES).format(item=item_phrase(rng, items[0]), place=place)
    if len(groups) == 1:
        return _equal_items(rng, items)
    if len(items) == 2:
        return _two_items(rng, items)
    if len(groups) == 2:
        return _pair_and_one(rng, groups)
    placed = [f"{item_phrase(rng, item)} {place_phrase(rng, item.position)}" for item in items]
    return _join(placed)


def _equal_items(rng: np.random.Generator, items: tuple[Item, ...]) -> str:
    positions = [item.position for item in items]
    phrase = item_phrase(rng, items[0], len(items))
    formation = FORMATIONS.get(frozenset(positions))
    if formation is not None:
        return f"{phrase} {formation}"
    return f"{phrase} {_join([place_phrase(rng, position) for position in positions])}"


def _two_items(rng: np.random.Generator, items: tuple[Item, ...]) -> str:
    first, second = items if rng.random() < 0.5 else items[::-1]
    a, b = item_phrase(rng, first), item_phrase(rng, second)
    relation = RELATIONS.get((first.position, second.position))
    if relation is not None and rng.random() < 0.7:
        return f"{a} {relation_phrase(rng, relation)} {b}"
    at_a, at_b = place_phrase(rng, first.position), place_phrase(rng, second.position)
    return pick(rng, _EACH_TEMPLATES).format(a=a, b=b, at_a=at_a, at_b=at_b)


def _pair_and_one(rng: np.random.Generator, groups: list[list[Item]]) -> str:
    pair, (single,) = sorted(groups, key=len, reverse=True)
    positions = {item.position for item in pair}
    pair_phrase = item_phrase(rng, pair[0], len(pair))
    single_phrase = item_phrase(rng, single)
    for relation, (one, two, opposite) in PAIR_AND_ONE.items():
        if positions == {one, two} and single.position == opposite:
            return f"{pair_phrase} {relation_phrase(rng, relation)} {single_phrase}"
    places = _join([place_phrase(rng, item.position) for item in pair])
    return f"{pair_phrase} {places} and {single_phrase} {place_phrase(rng, single.position)}"


def _short(rng: np.random.Generator, scene: Scene) -> str:
    """Every fact in at most MAX_WORDS words, without articles."""
    phrases = []
    for group in _groups(scene.items):
        words = item_words(rng, group[0], len(group))
        number = f"{NUMBER_WORDS[len(group)]} " if len(group) > 1 else ""
        positions = _join([item.position for item in group])
        phrases.append(_SHORT_TEMPLATE.format(words=number + words, position=positions))
    background = min(
        (background_words(rng, scene.background) for _ in range(4)), key=lambda words: len(words)
    )
    return _SHORT_WHOLE_TEMPLATE.format(items=_join(phrases), background=background)


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption or an editing instruction can hold, sorted."""
    templates = (
        *_OPENINGS,
        *_ONE_TEMPLATES,
        *_EACH_TEMPLATES,
        *_WHOLE_TEMPLATES,
        _THREE_TEMPLATE,
        _SHORT_TEMPLATE,
        _SHORT_WHOLE_TEMPLATE,
    )
    return tuple(sorted(phrase_words() | template_words(templates) | instruction_words()))
