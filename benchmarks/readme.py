"""Puts a benchmark's results into benchmarks/README.md, between the markers of its section."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

README = Path(__file__).with_name("README.md")


def fill(text: str, section: str, block: str) -> str:
    """`text` with `block` between `<!-- section:start -->` and `<!-- section:end -->`.

    Raises:
        ValueError: not exactly one pair of markers, in that order.
    """
    start, end = f"<!-- {section}:start -->", f"<!-- {section}:end -->"
    before, found_start, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not found_start or not found_end or start in rest or end in after:
        raise ValueError(f"{README.name} needs one {start} and, below it, one {end}")
    return f"{before}{start}\n\n{block}\n\n{end}{after}"


def paragraph(text: str) -> str:
    """Lines of at most 100 characters; what stands between backticks is not broken."""
    kept = re.sub("`[^`]*`", lambda quoted: quoted[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(kept, 100, break_on_hyphens=False, break_long_words=False)
    return "\n".join(lines).replace("\0", " ")


def write_section(section: str, block: str) -> None:
    """Replace what stands in a section of the README."""
    text = README.read_text(encoding="utf-8")
    README.write_text(fill(text, section, block), encoding="utf-8")


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Keep a benchmark's report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
