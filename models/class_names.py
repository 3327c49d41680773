"""Which class a prompt names: an index, or any of a class's names as people write them.

Imports no torch, so that the gateway can refuse an unknown class.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from models.manifest import BundleError, Manifest

_IMAGENET = Path(__file__).with_name("data") / "imagenet_classes.json"
_INTEGER = re.compile(r"[+-]?[0-9]+")
_SPACE = re.compile(r"[\s_-]+")
_APOSTROPHE = re.compile("['\N{RIGHT SINGLE QUOTATION MARK}]")
_SHOWN_CHARS = 64
_SHOWN_NAMES = 5
# Of a likeness that is 2 at most: what is less like the prompt than this, or than this share of the
# best, is not worth naming.
_LEAST_LIKENESS = 0.8
_SHARE_OF_BEST = 0.7


class UnknownClass(ValueError):
    """A prompt names no class, or more than one; the message quotes it and says what to send."""


def imagenet_class_names() -> list[str]:
    """The 1000 classes of ImageNet-1k in their order; see `data/NOTICE.md`."""
    names: list[str] = json.loads(_IMAGENET.read_text(encoding="utf-8"))
    return names


class ClassNames:
    """The names of a model's classes, in the order of their indices.

    An entry is one name or several that mean the same, separated by commas: "tench, Tinca tinca".
    """

    def __init__(self, names: Sequence[str]) -> None:
        """One entry per class.

        Raises:
            ValueError: there is no entry, or one holds no name.
        """
        if not names:
            raise ValueError("class names must not be empty")
        self._names = [_split(entry) for entry in names]
        nameless = [index for index, synonyms in enumerate(self._names) if not synonyms]
        if nameless:
            raise ValueError(f"class {nameless[0]} has no name: {names[nameless[0]]!r}")
        owners: dict[str, set[int]] = {}
        spellings: dict[str, str] = {}
        for index, synonyms in enumerate(self._names):
            for name in synonyms:
                owners.setdefault(_key(name), set()).add(index)
                spellings.setdefault(_key(name), name)
            owners.setdefault(_key(", ".join(synonyms)), set()).add(index)
        self._owners = {key: sorted(indices) for key, indices in owners.items()}
        self._spellings = spellings
        self._pairs = {key: _letter_pairs(key) for key in spellings}
        self._with_pair: dict[str, list[str]] = {}
        for key, pairs in self._pairs.items():
            for pair in pairs:
                self._with_pair.setdefault(pair, []).append(key)

    @classmethod
    def of(cls, manifest: Manifest) -> Self | None:
        """The classes of a bundle; None for a model without classes.

        Raises:
            BundleError: an entry of the manifest holds no name.
        """
        if manifest.class_names is None:
            return None
        try:
            return cls(manifest.class_names)
        except ValueError as error:
            raise BundleError(f"manifest: class_names: {error}") from None

    def __len__(self) -> int:
        return len(self._names)

    def label(self, index: int) -> str:
        """The first name of a class."""
        return self._names[index][0]

    def resolve(self, prompt: str) -> int:
        """Index of the class that a prompt names.

        That is an index in digits, a whole entry, or one of its names. Case, apostrophes, repeated
        white space, and a hyphen or underscore for a space make no difference. Digits are always
        an index.

        Raises:
            UnknownClass: no class, or several, have this name, or the index is out of range.
        """
        if _INTEGER.fullmatch(prompt.strip()):
            return self._check_index(prompt.strip())
        owners = self._owners.get(_key(prompt), [])
        if not owners:
            raise UnknownClass(self._no_class(prompt))
        if len(owners) > 1:
            choices = " or ".join(
                f"{index} ({self._other_name(index, _key(prompt))})" for index in owners
            )
            raise UnknownClass(f"{_quote(prompt)} names {len(owners)} classes: send {choices}")
        return owners[0]

    def nearest(self, prompt: str) -> list[tuple[str, int]]:
        """Names that resemble a prompt, best first, at most five: (name, index).

        Two things count: the share of letter pairs in common, which finds spelling mistakes, and
        how far the shorter of the two lies inside the other, which finds parts of names.
        """
        wanted = _letter_pairs(_key(prompt))
        shared = Counter(key for pair in wanted for key in self._with_pair.get(pair, ()))
        likeness = {
            key: 2 * count / (len(wanted) + len(self._pairs[key]))
            + count / min(len(wanted), len(self._pairs[key]))
            for key, count in shared.items()
        }
        least = max(_LEAST_LIKENESS, _SHARE_OF_BEST * max(likeness.values(), default=0))
        ranked = sorted(
            (key for key, value in likeness.items() if value >= least),
            key=lambda key: (-likeness[key], key),
        )
        found: dict[int, str] = {}
        for key in ranked:
            for index in self._owners[key]:
                found.setdefault(index, self._spellings[key])
        return [(name, index) for index, name in found.items()][:_SHOWN_NAMES]

    def _check_index(self, digits: str) -> int:
        # Python refuses to read thousands of digits, and none of so many is in range.
        if len(digits.lstrip("+-0")) <= len(str(len(self))):
            index = int(digits)
            if 0 <= index < len(self):
                return index
        raise UnknownClass(f"{_quote(digits)} is out of range: send an index from {self._range()}")

    def _no_class(self, prompt: str) -> str:
        names = ", ".join(f"{name} ({index})" for name, index in self.nearest(prompt))
        near = f"the nearest names are {names}" if names else "no name is near it"
        return (
            f"{_quote(prompt)} is no class of this model: {near}; "
            f"an index from {self._range()} works too"
        )

    def _range(self) -> str:
        return f"0 to {len(self) - 1}"

    def _other_name(self, index: int, key: str) -> str:
        """A name of the class that is not `key`, if it has one."""
        return next((n for n in self._names[index] if _key(n) != key), self.label(index))


def _split(entry: str) -> list[str]:
    return [" ".join(part.split()) for part in entry.split(",") if _key(part)]


def _key(text: str) -> str:
    """What is the same for all ways to write a name; commas separate names."""
    words = _SPACE.sub(" ", _APOSTROPHE.sub("", text.casefold()))
    return ", ".join(part.strip() for part in words.split(",") if part.strip())


def _letter_pairs(key: str) -> frozenset[str]:
    """Neighbouring letters, the spaces around each word included."""
    words: Iterable[str] = (f" {word} " for word in key.replace(",", " ").split())
    return frozenset(word[i : i + 2] for word in words for i in range(len(word) - 1))


def _quote(prompt: str) -> str:
    shown = " ".join(prompt.split())
    return f'"{shown[:_SHOWN_CHARS]}..."' if len(shown) > _SHOWN_CHARS else f'"{shown}"'
