"""The playground on a real service, in Debian's Chromium."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, sync_playwright

from benchmarks.serving import own_server
from tests.browser.visit import BROWSER_OPTIONS, Visit, png_of, visiting

STEP_S = 0.04  # a hundred steps leave time to cancel, also on a busy machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Chromium itself crashes once in many runs, whatever the page: only then a test runs again."""
    again = pytest.mark.flaky(reruns=2, only_rerun=["TargetClosedError"])
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(again)


# Both for this folder only: a server would stand idle beside all other tests, and Playwright keeps
# an event loop running, beside which asyncio's tests could not start theirs.
@pytest.fixture(scope="package")
def service() -> Iterator[str]:
    """Address of a service whose model takes its time and paints plain colours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RPIAE_BACKEND", "fake")
        patch.setenv("RPIAE_FAKE_STEP_S", str(STEP_S))
        with own_server() as url:
            yield f"{url}/"


@pytest.fixture(scope="package")
def running_browser(require_tool: Callable[[str], str]) -> Iterator[Callable[[], Browser]]:
    """Function that gives the browser of all tests; another one when that has crashed."""
    chromium = require_tool("chromium")
    with sync_playwright() as playwright, ExitStack() as stack:
        browsers: list[Browser] = []

        def get() -> Browser:
            if not browsers or not browsers[-1].is_connected():
                options = {"executable_path": chromium, "args": [*BROWSER_OPTIONS]}
                browsers.append(playwright.chromium.launch(**options))
                stack.callback(browsers[-1].close)
            return browsers[-1]

        yield get


@pytest.fixture
def browser(running_browser: Callable[[], Browser]) -> Browser:
    return running_browser()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Function that visits an address with options of Playwright's context.

    At the end nothing may be left in the console, and no other host may have been asked.
    """
    with ExitStack() as stack:
        visits: list[Visit] = []

        def start(url: str, **context: Any) -> Visit:
            visits.append(stack.enter_context(visiting(browser, url, **context)))
            return visits[-1]

        yield start
        for each in visits:
            assert each.errors == []
            assert each.foreign == []


@pytest.fixture
def playground(visit: Callable[..., Visit], service: str) -> Visit:
    """The playground, open."""
    opened = visit(service)
    opened.open()
    return opened


@pytest.fixture(scope="session")
def source_file() -> bytes:
    """A PNG of 128 x 128 pixels of noise, which no model would paint by chance."""
    return png_of(np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8))
