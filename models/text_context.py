"""What conditions a request to TextDenoiser and stays the same over its steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional


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

    @property
    def num_bytes(self) -> int:
        """Memory that its tensors take."""
        tensors = (self.keys, self.values, self.mask, self.source)
        return sum(tensor.nbytes for tensor in tensors)

    def select(self, rows: Tensor | Sequence[int]) -> Self:
        """The context of some rows, in that order."""
        index = torch.as_tensor(rows, device=self.mask.device)
        return type(self)(
            self.keys[index], self.values[index], self.mask[index], self.source[index]
        )

    @classmethod
    def padded(
        cls,
        keys: Tensor,
        values: Tensor,
        text_mask: Tensor,
        source: Tensor | None,
        *,
        source_shape: tuple[int, int],
        max_prompt_tokens: int,
    ) -> Self:
        """Contexts of one length, from what the denoiser computed of prompts and sources.

        Args:
            keys, values: (R, depth, heads, [S +] T, head width), with S places where `source` is.
            text_mask: (R, T), True where a prompt has a token.
            source: (R, S, W) or None.
            source_shape: (S, W).
            max_prompt_tokens: what T is padded to.
        """
        num_source = source_shape[0]
        padding = max_prompt_tokens - text_mask.shape[1]
        missing = num_source if source is None else 0
        mask = functional.pad(text_mask, (num_source, padding), value=False)
        mask[:, :num_source] = source is not None
        if source is None:
            source = keys.new_zeros(len(keys), *source_shape)
        pads = (0, 0, missing, padding)  # the token axis is the last but one
        return cls(functional.pad(keys, pads), functional.pad(values, pads), mask, source)

    @classmethod
    def cat(cls, contexts: Sequence[Self]) -> Self:
        """Rows of several contexts, one after another."""
        return cls(
            torch.cat([c.keys for c in contexts]),
            torch.cat([c.values for c in contexts]),
            torch.cat([c.mask for c in contexts]),
            torch.cat([c.source for c in contexts]),
        )


def trim_padding(prompt_tokens: Tensor, pad_id: int) -> Tensor:
    """Ids (R, T) without the columns that are padding in every row; at least one stays."""
    return prompt_tokens[:, : max(1, int((prompt_tokens != pad_id).sum(1).max()))]
