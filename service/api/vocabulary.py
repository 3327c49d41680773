"""Which words of a prompt the model never saw in training: told to the client, no error."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

from models.manifest import BundleError, Manifest

# The tokenizer's rule; its own module imports torch, and a test holds the two together.
_WORD = re.compile(r"[^\W_]+", re.UNICODE)
_SHOWN_WORDS = 20
_SHOWN_CHARS = 64


@dataclass(frozen=True)
class Vocabulary:
    """The words a text model was trained on."""

    words: frozenset[str]

    @classmethod
    def read(cls, bundle: Path, manifest: Manifest) -> Self | None:
        """The vocabulary of a bundle; None for a model without one.

        Raises:
            BundleError: the file is missing or is not a JSON list of words.
        """
        if manifest.vocabulary_file is None:
            return None
        path = bundle / manifest.vocabulary_file
        try:
            words = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BundleError(f"vocabulary {path} cannot be read: {error}") from None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise BundleError(f"vocabulary {path} is not a JSON list of words")
        return cls(frozenset(words))

    def unknown_words(self, prompt: str) -> list[str]:
        """The prompt's words outside the vocabulary, each once, in order."""
        return list(dict.fromkeys(w for w in split_words(prompt) if w not in self.words))


def split_words(prompt: str) -> list[str]:
    """Lower-case words; everything but letters and digits separates."""
    return _WORD.findall(prompt.lower())


def words_header(words: list[str]) -> str:
    """Words as a header value: percent-encoded UTF-8, separated by commas, the first twenty."""
    return ",".join(quote(word[:_SHOWN_CHARS]) for word in words[:_SHOWN_WORDS])
