"""Prompts to token ids by the tokenizer of a pretrained language model.

What `models.text` is for closed vocabularies; the whole tokenizer is one JSON file of the
`tokenizers` library.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from models.manifest import BundleError
from models.text import NO_TOKEN


class PretrainedTokenizer:
    """Prompts to ids of one fixed length, closed by an end token, padded with NO_TOKEN.

    The empty prompt is the end token alone: the null prompt of guidance. Names of special tokens in
    a prompt are text like any other.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        """`tokenizer` adds the end token itself; see `with_end`.

        Raises:
            ValueError: max_tokens is below 2, or the empty prompt has no token.
        """
        if max_tokens < 2:
            raise ValueError(f"max_tokens must be >= 2, got {max_tokens}")
        tokenizer.enable_truncation(max_tokens)
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        if not tokenizer.encode("").ids:
            raise ValueError("the tokenizer adds no end token")
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens

    @classmethod
    def read(cls, path: Path, max_tokens: int) -> Self:
        """The tokenizer that `save` wrote.

        Raises:
            BundleError: the file cannot be read as one.
        """
        try:
            return cls(_read(path), max_tokens)
        except ValueError as error:
            raise BundleError(f"{path}: {error}") from None

    @classmethod
    def with_end(cls, path: Path, end_token: str, max_tokens: int) -> Self:
        """A model's own tokenizer, which from then on adds `end_token`.

        Raises:
            BundleError: the file cannot be read as a tokenizer, or has no such token.
        """
        tokenizer = _read(path)
        end = tokenizer.token_to_id(end_token)
        if end is None:
            raise BundleError(f"{path} has no token {end_token!r}")
        tokenizer.post_processor = TemplateProcessing(
            single=["$A", end_token], special_tokens=[(end_token, end)]
        )
        return cls(tokenizer, max_tokens)

    @property
    def num_ids(self) -> int:
        """Ids that it may give: 0 to num_ids - 1."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def save(self, path: Path) -> None:
        """Write it as one JSON file."""
        path.write_text(self._tokenizer.to_str(pretty=False) + "\n", encoding="utf-8")

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """(B, max_tokens) int64; longer prompts are cut before the end token."""
        ids = torch.full((len(prompts), self.max_tokens), NO_TOKEN)
        for row, encoding in zip(ids, self._tokenizer.encode_batch(list(prompts)), strict=True):
            row[: len(encoding.ids)] = torch.tensor(encoding.ids)
        return ids

    def unknown_words(self, prompt: str) -> list[str]:
        """Always empty: it spells every word in pieces that it knows."""
        return []


def _read(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    # The library raises bare exceptions for what its JSON lacks.
    except Exception as error:
        raise BundleError(f"{path} cannot be read as a tokenizer: {error}") from None
