"""Contexts of pictures, computed once for all rows that are alike.

R model rows. A row is kept for its owner alone: who could see that somebody else's prompt or
picture was there before would learn of it from the time that a request takes. The empty prompt
without a source is everybody's.
"""

from collections.abc import Sequence
from itertools import product
from typing import TypeAlias

import torch

from models.context import Context, cat_contexts
from service.backends.base import Backend
from service.engine.cache import ByteCache
from service.engine.calibration import Calibration
from service.engine.picture import Picture
from service.engine.work import Row

RowKey: TypeAlias = tuple[str | None, str, bytes, bool]
"""Owner, prompt, source, guide."""


class Prefiller:
    """Makes contexts and remembers them.

    Args:
        cache_bytes: for what is remembered; 0 for nothing but the empty prompt.
    """

    def __init__(self, backend: Backend, calibration: Calibration, cache_bytes: int) -> None:
        self._backend = backend
        self._calibration = calibration
        self._kept: ByteCache[RowKey, Context] = ByteCache(cache_bytes)
        self._shared: dict[RowKey, Context] = {}  # two at most: the model's own and its guide's

    def num_missing(self, picture: Picture) -> int:
        """Rows of a picture that are still to be computed."""
        keys = {_key(picture, row) for row in picture.rows}
        return sum(key not in self._kept and key not in self._shared for key in keys)

    def contexts(self, pictures: Sequence[Picture]) -> list[Context]:
        """Contexts, each with its picture's rows in order."""
        known: dict[RowKey, Context] = {}
        missing: dict[RowKey, tuple[Picture, Row]] = {}
        for picture in pictures:
            for row in picture.rows:
                key = _key(picture, row)
                context = self._shared.get(key) or self._kept.get(key)
                if context is None:
                    missing.setdefault(key, (picture, row))
                else:
                    known[key] = context
        known |= self._compute(missing)
        return [
            _joined([known[_key(picture, row)] for row in picture.rows]) for picture in pictures
        ]

    def forget(self) -> None:
        """Free the memory of everything that is remembered."""
        self._kept.clear()

    def _compute(self, missing: dict[RowKey, tuple[Picture, Row]]) -> dict[RowKey, Context]:
        computed: dict[RowKey, Context] = {}
        for edit, guide in product((False, True), repeat=2):  # rows of one call are of one kind
            chosen = {
                key: (picture, row)
                for key, (picture, row) in missing.items()
                if (row.edit, row.guide) == (edit, guide)
            }
            if chosen:
                context = self._call(list(chosen.values()), edit=edit, guide=guide)
                computed |= {key: context.select([index]) for index, key in enumerate(chosen)}
        for key, context in computed.items():
            if key[0] is None:
                self._shared[key] = context
            else:
                self._kept.put(key, context, context.num_bytes)
        return computed

    def _call(self, rows: list[tuple[Picture, Row]], *, edit: bool, guide: bool) -> Context:
        size = self._calibration.padded(len(rows), self._calibration.max_rows)
        rows = rows + rows[:1] * (size - len(rows))
        sources = None
        if edit:
            latents = [picture.source_latents for picture, _ in rows]
            sources = torch.stack([source for source in latents if source is not None])
        return self._backend.prefill([row.prompt for _, row in rows], sources, guide=guide)


def _key(picture: Picture, row: Row) -> RowKey:
    if not row.prompt and not row.edit:
        return None, "", b"", row.guide
    source = picture.work.source_key if row.edit else b""
    return picture.work.owner, row.prompt, source, row.guide


def _joined(contexts: Sequence[Context]) -> Context:
    return contexts[0] if len(contexts) == 1 else cat_contexts(contexts)
