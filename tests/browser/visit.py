"""A visitor of the playground in a real browser, and what is recorded while it is there."""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Request, expect

PATIENCE_MS = 15_000
# What Chromium itself writes of an answer that is no success.
FAILED_ANSWER = "Failed to load resource: the server responded with a status of "

# Without a GPU Chromium emulates one, in a process whose crash can take the browser with it.
BROWSER_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
)


class Visit:
    """One page, open on the playground. `errors`: of the console; `foreign`: other hosts asked."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.errors: list[str] = []
        self.foreign: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def _on_request(self, request: Request) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.foreign.append(request.url)

    def open(self) -> None:
        """Go there and wait until the page knows its model."""
        self.page.goto(self.url)
        self.page.locator("body[data-ready]").wait_for()

    def forgive(self, status: int) -> None:
        """Take back the one error that Chromium writes of an answer with that status."""
        (text,) = [text for text in self.errors if text.startswith(f"{FAILED_ANSWER}{status} ")]
        self.errors.remove(text)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def set_options(self, mode: str, **options: Any) -> None:
        """Options of a form by their field names, as a visitor sets them."""
        form = self.page.locator(f"#form-{mode}")
        form.locator(".more").evaluate("element => { element.open = true; }")
        for name, value in options.items():
            control = form.locator(f"[name={name}]")
            if control.evaluate("element => element.tagName") == "SELECT":
                control.select_option(str(value))
            else:
                control.fill(str(value))

    def submit(self, mode: str) -> None:
        self.page.locator(f"#form-{mode} .primary").click()

    def finished(self) -> None:
        """Wait for the end of a request for pictures, and for its picture on the stage."""
        self.page.locator("body:not(.busy)").wait_for()
        expect(self.page.locator("#details")).to_be_visible()

    def generate(self, prompt: str, **options: Any) -> NDArray[np.uint8]:
        """A picture from the form: its pixels (H, W, 3)."""
        self.set_options("generate", **{"steps": 2, **options})
        self.page.locator("#generate-prompt").fill(prompt)
        self.submit("generate")
        self.finished()
        return self.shown()

    def shown(self) -> NDArray[np.uint8]:
        """Pixels (H, W, 3) of the picture on the stage."""
        image = self.page.locator("#frame .tile > img").first
        address: str = image.evaluate(
            """async (image) => {
                await image.decode();
                const canvas = document.createElement("canvas");
                [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
                canvas.getContext("2d").drawImage(image, 0, 0);
                return canvas.toDataURL();
            }"""
        )
        return pixels_at(address)

    def save(self, link: Locator) -> bytes:
        """The file that a link downloads."""
        with self.page.expect_download() as download:
            link.click()
        return download.value.path().read_bytes()


def pixels_at(address: str) -> NDArray[np.uint8]:
    """(H, W, 3) of a data: address."""
    return pixels_of(base64.b64decode(address.partition(",")[2]))


def pixels_of(file: bytes) -> NDArray[np.uint8]:
    """(H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file of pixels (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def visiting(browser: Browser, url: str, **context: Any) -> Iterator[Visit]:
    """A visit in a fresh browser profile; `context` are Playwright's options for it."""
    with browser.new_context(**context) as profile:
        yield Visit(profile.new_page(), url)
