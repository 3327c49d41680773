"""The Markdown pages of this repository: their code blocks, links and anchors, and running them."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
ADDRESS = "http://127.0.0.1:8000"
"""Where the pages say that the service is; tests put their own server's address there."""

_BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE_CODE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+?)\s*$", re.MULTILINE)
_ANCHOR_PUNCTUATION = re.compile(r"[^\w\- ]")


def markdown_files() -> list[Path]:
    """All pages that belong to the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [ROOT / name for name in sorted(listed) if (ROOT / name).is_file()]


def read(page: Path) -> str:
    """A page's text."""
    return page.read_text(encoding="utf-8")


def languages(page: Path) -> set[str]:
    """Languages of a page's code blocks; "" is a block without one."""
    return {language for language, _ in _BLOCK.findall(read(page))}


def code_blocks(page: Path, language: str) -> list[str]:
    """A page's code blocks in a language, in their order."""
    return [block for name, block in _BLOCK.findall(read(page)) if name == language]


def code_block(page: Path, language: str, containing: str) -> str:
    """The one code block of a page in that language with that text in it."""
    (block,) = [block for block in code_blocks(page, language) if containing in block]
    return block


def prose(page: Path) -> str:
    """A page's text without its code blocks; code inside a line stays."""
    return _BLOCK.sub("", read(page))


def links(page: Path) -> Iterator[str]:
    """Targets of a page's links and images."""
    yield from _LINK.findall(_INLINE_CODE.sub("", prose(page)))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them: equal ones are numbered."""
    found: dict[str, int] = {}
    names = set()
    for heading in _HEADING.findall(prose(page)):
        text = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading)
        name = _ANCHOR_PUNCTUATION.sub("", text.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


def environment(more: dict[str, str] | None = None) -> dict[str, str]:
    """The variables of a page's programs: this environment's commands come first on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, **(more or {})}


def run(arguments: list[str], folder: Path) -> str:
    """What a program writes, run in `folder`."""
    finished = subprocess.run(
        arguments, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr + finished.stdout
    return finished.stdout
