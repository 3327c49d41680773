"""Pictures of the playground for the README, taken of the model that comes with the repository.

    python -m tests.browser.take_screenshots [docs/images]

Needs Chromium. The pictures are the same on every machine but for its fonts.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from benchmarks.serving import own_server
from tests.browser.visit import BROWSER_OPTIONS, Visit, visiting

PROMPTS = (
    "a green triangle at the top on a pink background",
    "a pink heart in the top left and a blue ring in the bottom right on a yellow background",
    "a red circle in the center on a blue background",
    "a yellow star on the left and a purple heart on the right on a white background",
)
VIEWPORT = {"width": 1180, "height": 900}
MAX_BYTES = 200_000


def save(visit: Visit, path: Path) -> None:
    """What the window shows, in 6 bits a channel, which nobody sees in a smaller file."""
    visit.page.mouse.move(2, 2)
    visit.page.wait_for_timeout(300)  # colours of buttons fade
    shot = Image.open(io.BytesIO(visit.page.screenshot())).convert("RGB")
    shot.point(lambda value: value & 0xFC | value >> 6).save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, more than {MAX_BYTES}")


def generate_and_edit(visit: Visit, folder: Path) -> None:
    """A few results, and of an edit inside a mask half uncovered."""
    page = visit.page
    for seed, prompt in enumerate(PROMPTS):
        visit.generate(prompt, seed=seed, steps=20)
    page.locator("#history-list button").nth(1).click()
    page.get_by_role("button", name="Edit this result").click()
    page.locator("#use-mask").check()
    box = page.locator("#mask").bounding_box()
    assert box is not None
    left, top, side = box["x"], box["y"], box["width"]
    page.locator("#brush").fill("64")
    page.mouse.move(left + 0.45 * side, top + 0.5 * side)
    page.mouse.down()
    page.mouse.move(left + 0.6 * side, top + 0.5 * side, steps=3)
    page.mouse.up()
    visit.set_options("edit", seed=1)
    page.locator("#edit-prompt").fill("make the circle yellow")
    visit.submit("edit")
    visit.finished()
    page.get_by_label("Before", exact=True).fill("50")
    page.locator("#edit-prompt").blur()
    page.evaluate("scrollTo(0, 0)")
    save(visit, folder / "playground-edit.png")


def show_latents(visit: Visit, folder: Path) -> None:
    """The channels of the last result."""
    visit.page.get_by_role("button", name="See latents").click()
    visit.page.locator("#psnr:has-text('dB')").wait_for()
    save(visit, folder / "playground-latents.png")


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    folder.mkdir(parents=True, exist_ok=True)
    with own_server() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*BROWSER_OPTIONS]
        )
        with visiting(browser, f"{url}/", viewport=VIEWPORT) as visit:
            visit.open()
            generate_and_edit(visit, folder)
        with visiting(browser, f"{url}/", viewport=VIEWPORT, color_scheme="dark") as visit:
            visit.open()
            visit.generate(PROMPTS[1], seed=1, steps=20)
            show_latents(visit, folder)
        browser.close()


if __name__ == "__main__":
    main()
