"""What conditions a request to TextDenoiser and stays the same over its steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextContext:
    """Keys and values of prompt and source, one row per model row; see `models.context.Context`.

    keys, values: (R, depth, heads, N, head width), zero where absent; mask: (R, N), True where a
    key exists; source: (R, S, W), source latents embedded at the target's places, zero without.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    source: Tensor

    @property
    def num_rows(self) -> int:
        """R."""
        return self.mask.shape[0]

    def select(self, rows: Tensor | Sequence[int]) -> Self:
        """The context of some rows, in that order."""
        index = torch.as_tensor(rows, device=self.mask.device)
        return type(self)(
            self.keys[index], self.values[index], self.mask[index], self.source[index]
        )

    @classmethod
    def cat(cls, contexts: Sequence[Self]) -> Self:
        """Rows of several contexts, one after another."""
        return cls(
            torch.cat([c.keys for c in contexts]),
            torch.cat([c.values for c in contexts]),
            torch.cat([c.mask for c in contexts]),
            torch.cat([c.source for c in contexts]),
        )
