"""Prompts to class labels: what `models.text` is for words, for models of named classes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.class_names import ClassNames


class ClassEncoder:
    """Prompts to labels 0 to num_classes; a blank prompt is num_classes, the null class."""

    def __init__(self, names: Sequence[str]) -> None:
        """One entry per class, as for `ClassNames`.

        Raises:
            ValueError: there is no entry, or one holds no name.
        """
        self.names = ClassNames(names)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """(B,) int64.

        Raises:
            UnknownClass: a prompt names no class, or more than one.
        """
        null = len(self.names)
        labels = [self.names.resolve(prompt) if prompt.strip() else null for prompt in prompts]
        return torch.tensor(labels, dtype=torch.int64)

    def unknown_words(self, prompt: str) -> list[str]:
        """Always empty: a prompt names a class or is refused as a whole."""
        return []
