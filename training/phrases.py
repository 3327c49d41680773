"""Words for items, places and backgrounds, shared by captions and editing instructions.

Lower case, no punctuation, words parted by single spaces.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from training.layout import COLUMN, PAIRS, POSITIONS, ROW
from training.nouns import SHAPES, THINGS, plural
from training.palette import COLORS
from training.scenes import Background, Item
from training.stickers import pick

SIZE_WORDS = {"large": ("large", "big"), "small": ("small", "little")}
NUMBER_WORDS = {2: "two", 3: "three"}
_LARGE_NAMED_SHARE = 0.2
# People leave articles out, and write "one" for "a".
_NO_ARTICLE_SHARE = 0.12
_ONE_SHARE = 0.12

PLACES = {
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "center": ("in the center", "in the middle"),
    "top left": ("in the top left corner", "at the top left", "in the top left"),
    "top right": ("in the top right corner", "at the top right", "in the top right"),
    "bottom left": ("in the bottom left corner", "at the bottom left", "in the bottom left"),
    "bottom right": ("in the bottom right corner", "at the bottom right", "in the bottom right"),
}


# The first of two items at these positions stands so to the second.
RELATIONS = {
    ("left", "right"): "to the left of",
    ("right", "left"): "to the right of",
    ("top", "bottom"): "above",
    ("bottom", "top"): "below",
}
_RELATION_WORDS = {
    "to the left of": ("to the left of", "to the left of", "left of"),
    "to the right of": ("to the right of", "to the right of", "right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under"),
}

# How equal items stand, by the set of their positions.
FORMATIONS = {
    frozenset(PAIRS[0]): "side by side",
    frozenset(PAIRS[1]): "one above the other",
    frozenset(ROW): "in a row",
    frozenset(COLUMN): "in a column",
}

BACKGROUND_TEMPLATES = {
    "plain": ("{first} background", "plain {first} background"),
    "gradient": ("{first} to {second} gradient background",),
    "stripes": ("{first} and {second} striped background",),
    "dots": ("{first} background with {second} dots", "{first} and {second} dotted background"),
    "checkers": ("{first} and {second} checkered background",),
    "scene": ("{scene} background",),
}
SCENE_PLACES = {
    "grass": "on the grass",
    "sky": "in the sky",
    "sand": "on the sand",
    "snow": "in the snow",
    "night": "at night",
}
ON_BACKGROUND = ("on {background}", "against {background}")

# What a phrase that says where, and not what, starts with.
PREPOSITIONS = frozenset(("on", "at", "in", "against"))


def with_article(phrase: str) -> str:
    """`a red circle`, `an orange star`, `an owl`, `a unicorn`."""
    vowel = phrase[0] in "aeiou" and not phrase.startswith("uni")
    return f"{'an' if vowel else 'a'} {phrase}"


def item_words(rng: np.random.Generator, item: Item, number: int = 1) -> str:
    """Size, colour and kind without article: `small red circle`, `cats`. Small is always said."""
    words = [plural(item.kind) if number > 1 else item.kind]
    if item.color is not None:
        words.insert(0, item.color)
    if item.size == "small" or rng.random() < _LARGE_NAMED_SHARE:
        words.insert(0, pick(rng, SIZE_WORDS[item.size]))
    return " ".join(words)


def item_phrase(rng: np.random.Generator, item: Item, number: int = 1) -> str:
    """`a red circle`, `one red circle`, `red circle`, `two small cats`."""
    words = item_words(rng, item, number)
    if number > 1:
        return f"{NUMBER_WORDS[number]} {words}"
    chance = rng.random()
    if chance < _ONE_SHARE:
        return f"one {words}"
    return words if chance < _ONE_SHARE + _NO_ARTICLE_SHARE else with_article(words)


def reference(rng: np.random.Generator, item: Item, items: Sequence[Item]) -> str:
    """The item as the only one meant among `items`: `the circle`, or `the red circle`."""
    same_kind = Counter(other.kind for other in items)[item.kind]
    if item.color is None or (same_kind == 1 and rng.random() < 0.4):
        return f"the {item.kind}"
    return f"the {item.color} {item.kind}"


def place_phrase(rng: np.random.Generator, position: str) -> str:
    """`on the left`, `in the top left corner`."""
    return pick(rng, PLACES[position])


def relation_phrase(rng: np.random.Generator, relation: str) -> str:
    """A value of RELATIONS, or a synonym of it."""
    return pick(rng, _RELATION_WORDS[relation])


def background_words(rng: np.random.Generator, background: Background) -> str:
    """The background without article: `blue background`, `red and white striped background`."""
    return pick(rng, BACKGROUND_TEMPLATES[background.style]).format(
        first=background.colors[0], second=background.colors[-1], scene=background.scene
    )


def on_background(rng: np.random.Generator, background: Background) -> str:
    """`on a blue background`, `against a night background`, `in the snow`."""
    if background.scene is not None and rng.random() < 0.5:
        return SCENE_PLACES[background.scene]
    words = background_words(rng, background)
    phrase = words if rng.random() < _NO_ARTICLE_SHARE else with_article(words)
    return pick(rng, ON_BACKGROUND).format(background=phrase)


def phrase_words() -> set[str]:
    """Every word that a phrase of this module can hold."""
    phrases: list[str] = ["a an one the", *NUMBER_WORDS.values(), *COLORS, *POSITIONS]
    phrases += [*SHAPES, *THINGS, *map(plural, (*SHAPES, *THINGS))]
    for options in (*SIZE_WORDS.values(), *PLACES.values(), *_RELATION_WORDS.values()):
        phrases += options
    for options in BACKGROUND_TEMPLATES.values():
        phrases += options
    phrases += [*FORMATIONS.values(), *SCENE_PLACES, *SCENE_PLACES.values()]
    phrases += ON_BACKGROUND
    return template_words(phrases)


def template_words(templates: Sequence[str]) -> set[str]:
    """The words of templates, their {fields} left out."""
    return {word for text in templates for word in text.split() if "{" not in word}
