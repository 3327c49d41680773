"""What the repository promises about itself: sizes of files, pinned versions, README commands."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.documents import DOCS, README, ROOT, read

PYTHON_FOLDERS = ("models", "training", "export", "service", "tests", "benchmarks", "docs")
MAX_LINES = 300
MAX_TEST_LINES = 450  # a list of cases reads better in one piece
MAX_BUNDLE_BYTES = 40 * 2**20
MAX_DATA_BYTES = 4 * 2**20
NAMELESS = {"utils.py", "helpers.py", "common.py", "misc.py"}


def python_files() -> Iterator[Path]:
    for folder in PYTHON_FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def requirements(*extras: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in parsed}


def documented_words(program: str) -> set[str]:
    """Words that follow `program` in code of the README and of docs/, blocks and inside lines."""
    text = "\n".join(read(page) for page in (README, *sorted(DOCS.glob("*.md"))))
    code = re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL)
    pattern = re.compile(rf"(?:^|[`\s/]){program} ([a-z][a-z-]*)", flags=re.MULTILINE)
    return {word for block in code for word in pattern.findall(block)}


def test_python_files_are_short() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files()
        if not path.is_relative_to(ROOT / "tests" / "data")
    }
    assert {
        name: length
        for name, length in lengths.items()
        if length > (MAX_TEST_LINES if name.startswith("tests") else MAX_LINES)
    } == {}


def test_modules_are_named_after_a_subject() -> None:
    assert [str(path.relative_to(ROOT)) for path in python_files() if path.name in NAMELESS] == []


@pytest.mark.parametrize(
    ("folder", "max_bytes"), [("bundles", MAX_BUNDLE_BYTES), ("training/data", MAX_DATA_BYTES)]
)
def test_committed_data_stay_small(folder: str, max_bytes: int) -> None:
    """`bundles/*` and `training/data` live in git: each of them has a limit."""
    parents = sorted((ROOT / folder).iterdir()) if folder == "bundles" else [ROOT / folder]
    assert parents, f"{folder} is empty"
    for parent in parents:
        files = [path for path in parent.rglob("*") if path.is_file()]
        # What `rpiae export` makes of a bundle is not committed.
        exported = {parent / "onnx", parent / "engines"}
        size = sum(path.stat().st_size for path in files if path.parents[1] not in exported)
        assert size <= max_bytes, f"{parent.relative_to(ROOT)} holds {size} bytes"


def test_each_requirement_is_pinned_inside_its_range() -> None:
    pinned = pins()
    for requirement in requirements("train", "export", "onnxruntime", "dev"):
        pin = pinned[canonicalize_name(requirement.name)]
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert requirement.specifier.contains(exact.version), f"{pin} is not in {requirement}"


def test_everything_installed_has_its_pinned_version() -> None:
    """Walks the requirements of the installed packages, starting at the project's own."""
    pinned, seen = pins(), set()
    waiting = requirements("train", "export", "dev")
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        assert name in pinned, f"constraints.txt lacks {name}"
        distribution = metadata.distribution(name)
        assert pinned[name].specifier.contains(distribution.version), pinned[name]
        waiting += [Requirement(line) for line in distribution.requires or []]


def test_torchvision_cannot_be_installed() -> None:
    assert str(pins()["torchvision"].specifier) == "==0.0.0"
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.distribution("torchvision")


def test_pages_name_existing_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))
    named = documented_words("make")
    assert {"serve", "test", "check", "bench"} <= named
    assert named <= targets


def test_pages_name_existing_commands() -> None:
    named = documented_words("rpiae")
    assert {"serve", "generate", "edit", "encode", "decode", "train", "evaluate"} <= named
    shown = subprocess.run(
        [Path(sys.executable).with_name("rpiae"), "--help"],
        env={**os.environ, "COLUMNS": "120", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    missing = {word for word in named if not re.search(rf"^\W*{word}\s", shown, re.MULTILINE)}
    assert missing == set(), shown
