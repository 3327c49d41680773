"""The Markdown pages against the code: what they name exists, and what exists is documented."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.generate import outdated
from service.settings import ENV_PREFIX, Settings
from tests.documents import (
    DOCS,
    README,
    ROOT,
    anchors,
    languages,
    links,
    markdown_files,
    prose,
    read,
)
from tests.monitoring_files import alerts, rules
from tests.unit.test_dashboards import exported_names

PAGES = sorted(DOCS.glob("*.md"))
# By tests/integration/test_docs.py; README's by test_readme.py beside it.
RUN = {
    "api.md": {"sh", "python", "javascript"},
    "bundles.md": {"sh", "python"},
    "configuration.md": {"sh"},
    "export.md": {"sh", "python"},
    "operations.md": {"sh"},
    "security.md": {"sh"},
    "tracing.md": {"sh"},
    "training.md": {"sh"},
}
SHOWN = {"", "text", "json"}
FOREIGN_VARIABLES = {"RPIAE_WEIGHTS"}  # of the tests
_ALERT = re.compile(r"\bRpiae[A-Z]\w+")
_CODE = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*")


@pytest.mark.parametrize("page", markdown_files(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in links(page):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`, three\n\n## Same\n\n## Same\n\n[a](#b) `[c](d)` ![e](f.png)\n")
    assert list(links(page)) == ["#b", "f.png"]
    assert anchors(page) == {"one-two-three", "same", "same-1"}


def test_generated_pages_are_up_to_date() -> None:
    """`python -m docs.generate` writes them."""
    assert [path.name for path in outdated()] == []


def test_the_index_names_every_page() -> None:
    listed = {target for target in links(DOCS / "README.md") if "/" not in target}
    assert listed == {page.name for page in PAGES} - {"README.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_is_run_or_no_program(page: Path) -> None:
    assert languages(page) - SHOWN == RUN.get(page.name, set())


def strings_of_codes(node: ast.AST) -> Iterator[str]:
    """Codes of errors that an expression or statement writes down."""
    match node:
        case ast.keyword(arg="code", value=value):
            yield from constants(value)
        case ast.AnnAssign(target=ast.Name(id="code" | "default_code"), value=ast.expr() as value):
            yield from constants(value)
        case ast.Assign(targets=[target], value=value) if names_code(target):
            yield from constants(value)
        case ast.Call(func=ast.Name(id="ErrorBody"), args=[_, _, code]):
            yield from constants(code)


def names_code(target: ast.expr) -> bool:
    names = {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}
    return bool(names & {"code", "default_code"})


def constants(value: ast.expr) -> Iterator[str]:
    """Strings in an expression, but for keys and what is looked up by them."""
    nodes = list(ast.walk(value))
    keys = {id(key) for node in nodes if isinstance(node, ast.Dict) for key in node.keys}
    keys |= {id(node.slice) for node in nodes if isinstance(node, ast.Subscript)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in keys:
            yield node.value


def codes_of_the_service() -> set[str]:
    nodes = (
        node
        for path in (ROOT / "service").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )
    found = {code for node in nodes for code in strings_of_codes(node)}
    return {code for code in found if _CODE.fullmatch(code)}


def test_every_error_code_is_explained() -> None:
    codes = codes_of_the_service()
    assert {"invalid_value", "unknown_route", "missing_required_parameter", "bad_http"} <= codes
    _, _, section = read(DOCS / "api.md").partition("## Errors and what to do about them")
    rows = re.findall(r"^\| [\d, ]+ \| ([^|]+) \|", section, re.MULTILINE)
    explained = [code for row in rows for code in re.findall(r"`(\w+)`", row)]
    assert sorted(explained) == sorted(codes)


def test_every_alert_has_its_section() -> None:
    _, _, section = read(DOCS / "operations.md").partition("\n## Alerts\n")
    sections = re.findall(r"^### (\w+)$\n\n(Page|Ticket)\. ", section, re.MULTILINE)
    assert [name for name, _ in sections] == [name for name, _ in alerts()]


def test_every_alert_that_is_named_exists() -> None:
    known = {name for name, _ in alerts()}
    named = {(page, name) for page in markdown_files() for name in _ALERT.findall(read(page))}
    assert {(page, name) for page, name in named if name not in known} == set()


def test_every_setting_that_is_named_exists() -> None:
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields} | FOREIGN_VARIABLES
    documented = set(re.findall(r"^\| `(RPIAE_\w+)`", read(DOCS / "configuration.md"), re.M))
    assert known - FOREIGN_VARIABLES <= documented
    for page in markdown_files():
        named = set(re.findall(r"\bRPIAE_[A-Z_]*[A-Z]\b", read(page)))
        assert named <= known, f"{page}: {named - known}"


def test_every_metric_that_is_named_exists() -> None:
    known = exported_names() | {name for name, _ in rules()}
    families = known | {re.sub(r"_(bucket|sum|count)$", "", name) for name in known}
    named = {
        name
        for page in (README, *PAGES, ROOT / "deploy" / "README.md")
        for name in re.findall(r"`[^`\n]*?(\brpiae[_:]\w+\b(?!\.pt)(?::\w+)*)", prose(page))
    }
    assert "rpiae_workers" in named
    assert named <= families


def test_every_page_shows_what_it_is_about() -> None:
    assert [page.name for page in PAGES if not read(page).startswith("# ")] == []
