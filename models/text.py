"""Prompts to token ids: a closed, word-level vocabulary that travels in the bundle."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

PAD, UNKNOWN, END = "<pad>", "<unk>", "<end>"
SPECIAL_TOKENS = (PAD, UNKNOWN, END)
PAD_ID, UNKNOWN_ID, END_ID = range(3)
NO_TOKEN = -1
"""What pads prompts of a tokenizer that uses every id from 0."""

_WORD = re.compile(r"[^\W_]+", re.UNICODE)


def split_words(prompt: str) -> list[str]:
    """Lower-case words; everything but letters and digits separates."""
    return _WORD.findall(prompt.lower())


class PromptTokenizer:
    """Words to ids of one fixed length, closed by an end token.

    The empty prompt is the end token alone: the null prompt of guidance. Words outside the
    vocabulary become `<unk>`.
    """

    def __init__(self, words: Sequence[str], max_tokens: int) -> None:
        """`words` includes the special tokens at their fixed places.

        Raises:
            ValueError: the special tokens are not first, a word repeats, or max_tokens < 2.
        """
        if tuple(words[: len(SPECIAL_TOKENS)]) != SPECIAL_TOKENS:
            raise ValueError(f"a vocabulary starts with {', '.join(SPECIAL_TOKENS)}")
        if len(set(words)) != len(words):
            raise ValueError("a vocabulary lists each word once")
        if max_tokens < 2:
            raise ValueError(f"max_tokens must be >= 2, got {max_tokens}")
        self.words = list(words)
        self.max_tokens = max_tokens
        self._ids = {word: index for index, word in enumerate(words)}

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """(B, max_tokens) int64; prompts of more words are cut."""
        ids = torch.full((len(prompts), self.max_tokens), PAD_ID)
        for row, prompt in zip(ids, prompts, strict=True):
            words = split_words(prompt)[: self.max_tokens - 1]
            found = [self._ids.get(word, UNKNOWN_ID) for word in words]
            row[: len(found) + 1] = torch.tensor([*found, END_ID])
        return ids

    def unknown_words(self, prompt: str) -> list[str]:
        """The prompt's words that the model never saw, in order."""
        return [word for word in split_words(prompt) if word not in self._ids]
