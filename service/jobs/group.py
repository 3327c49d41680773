"""Jobs that were put together, and what their caller needs to be answered later."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.jobs.job import to_json


@dataclass(frozen=True, kw_only=True)
class Group:
    """The jobs of one request. It is kept as long as the records of its jobs.

    `created_at`: Unix time in seconds. `answer`: JSON that the queue keeps and does not read.
    `fingerprint`: of the request that came with `idempotency_key`, to tell a repeat from a misuse.
    """

    id: str
    owner: str
    job_ids: tuple[str, ...]
    created_at: float
    answer: dict[str, Any]
    idempotency_key: str = ""
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.id or any(letter in self.id for letter in "{}: "):
            raise ValueError(f"a group id holds no braces, colons or spaces, got {self.id!r}")
        if not self.job_ids:
            raise ValueError(f"group {self.id} has no jobs")

    def key_digest(self) -> str:
        """Stands for owner and idempotency key, which are the caller's text; "" without a key."""
        if not self.idempotency_key:
            return ""
        return hashlib.sha256(f"{self.owner}\0{self.idempotency_key}".encode()).hexdigest()

    def to_fields(self) -> dict[str, str]:
        """Fields of the group's Redis hash, all text; empty ones are left out."""
        fields = {
            "id": self.id,
            "owner": self.owner,
            "job_ids": to_json(self.job_ids),
            "created_at": repr(self.created_at),
            "answer": to_json(self.answer),
            "idempotency_key": self.idempotency_key,
            "fingerprint": self.fingerprint,
        }
        return {name: value for name, value in fields.items() if value}

    @classmethod
    def from_fields(cls, fields: Mapping[str, str]) -> "Group":
        """The inverse of `to_fields`; fields of other names are ignored.

        Raises:
            ValueError: names the field that is missing or does not parse.
        """
        try:
            return cls(
                id=fields["id"],
                owner=fields.get("owner", ""),
                job_ids=tuple(json.loads(fields["job_ids"])),
                created_at=float(fields["created_at"]),
                answer=json.loads(fields["answer"]),
                idempotency_key=fields.get("idempotency_key", ""),
                fingerprint=fields.get("fingerprint", ""),
            )
        except KeyError as error:
            raise ValueError(f"stored group lacks the field {error}") from None
