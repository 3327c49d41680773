"""What a gateway must know of the model that is served: its manifest, and the words it reads.

Imports no torch.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from models.class_names import ClassNames
from models.manifest import MANIFEST_NAME, Manifest, read_manifest
from service.api.vocabulary import Vocabulary


@dataclass(frozen=True)
class ServedModel:
    """A model as requests are checked against it; written_at: its bundle, in Unix seconds."""

    manifest: Manifest
    written_at: int
    vocabulary: Vocabulary | None
    class_names: ClassNames | None

    @classmethod
    def read(cls, bundle: Path) -> Self:
        """The model in a bundle's directory.

        Raises:
            BundleError: no usable manifest, vocabulary or class names.
        """
        manifest = read_manifest(bundle)
        written_at = int((bundle / MANIFEST_NAME).stat().st_mtime)
        vocabulary = Vocabulary.read(bundle, manifest)
        return cls(manifest, written_at, vocabulary, ClassNames.of(manifest))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`.

        Raises:
            ValueError: it is of another version of this program.
        """
        try:
            fields = json.loads(text)
            manifest, words = Manifest.model_validate(fields["manifest"]), fields["vocabulary"]
            written_at = int(fields["written_at"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no description of a model: {error!r}") from None
        vocabulary = None if words is None else Vocabulary(frozenset(words))
        return cls(manifest, written_at, vocabulary, ClassNames.of(manifest))

    def to_json(self) -> str:
        """All of it as text."""
        return json.dumps(self._fields(self.manifest) | {"written_at": self.written_at})

    @cached_property
    def digest(self) -> str:
        """Tells it from other models; the same on every machine that has its bundle."""
        manifest = self.manifest.model_copy(update={"exports": []})  # of one machine
        return hashlib.sha256(json.dumps(self._fields(manifest)).encode()).hexdigest()

    def _fields(self, manifest: Manifest) -> dict[str, Any]:
        words = None if self.vocabulary is None else sorted(self.vocabulary.words)
        return {"manifest": manifest.model_dump(mode="json"), "vocabulary": words}
