"""Writes the pages, and parts of pages, that follow from the code.

Run: python -m docs.generate, or with --check to see only whether they are up to date.
"""

import argparse
import sys
from pathlib import Path

from docs.configuration_page import settings_tables
from docs.metrics_page import metrics_page
from docs.reference_page import reference_page

_FOLDER = Path(__file__).parent
SETTINGS_START, SETTINGS_END = "<!-- settings:start -->", "<!-- settings:end -->"


def pages() -> dict[Path, str]:
    """Each page and what it should hold.

    Raises:
        ValueError: configuration.md lacks its markers.
    """
    configuration = _FOLDER / "configuration.md"
    return {
        _FOLDER / "api-reference.md": reference_page(),
        _FOLDER / "metrics.md": metrics_page(),
        configuration: _fill(configuration.read_text(encoding="utf-8"), settings_tables()),
    }


def outdated() -> dict[Path, str]:
    """Those of `pages` that hold something else."""
    return {
        path: text
        for path, text in pages().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def main() -> None:
    """Write what is out of date, or with --check only name it and end with status 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    found = outdated()
    for path, text in found.items():
        if not check:
            path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{path}: {'out of date' if check else 'written'}\n")
    sys.exit(bool(found) and check)


def _fill(text: str, block: str) -> str:
    """`text` with `block` between its markers."""
    before, start, rest = text.partition(SETTINGS_START)
    _, end, after = rest.partition(SETTINGS_END)
    if not start or not end:
        raise ValueError(f"configuration.md needs {SETTINGS_START} and, below it, {SETTINGS_END}")
    return f"{before}{SETTINGS_START}\n\n{block}\n\n{SETTINGS_END}{after}"


if __name__ == "__main__":
    main()
