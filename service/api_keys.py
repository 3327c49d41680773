"""API keys as they are written down, and as they are held: as SHA-256 digests only."""

import hashlib
import re
from pathlib import Path

_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
_MIN_KEY_CHARS = 8


def hash_api_key(key: str) -> str:
    """SHA-256 hex digest of a key, the form in which keys are held and jobs name their owner."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_api_key(text: str) -> str:
    """Digest of a key that is given in clear, or as sha256:<64 hex digits>.

    Raises:
        ValueError: it is too short, or no digest; the message does not show it.
    """
    hashed = _SHA256.fullmatch(text)
    if hashed:
        return hashed[1]
    if text.startswith("sha256:"):
        raise ValueError("sha256: must be followed by 64 lower-case hex digits")
    if len(text) < _MIN_KEY_CHARS:
        raise ValueError(
            f"a key has {len(text)} characters, at least {_MIN_KEY_CHARS} are needed; "
            "`openssl rand -hex 24` makes a good one"
        )
    return hash_api_key(text)


def keys_of_file(path: Path) -> list[str]:
    """One key a line; empty lines and those that begin with # do not count.

    Raises:
        ValueError: it cannot be read, or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    keys = [line for line in map(str.strip, lines) if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"{path} holds no keys")
    return keys
