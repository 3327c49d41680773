"""Copied code, run as it stands, makes the picture that the page shows."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from playwright.sync_api import expect

from tests.browser.visit import Visit, pixels_at, pixels_of

# Each script in its folder, in one process: importing the client takes longer than all of them.
RUN_SCRIPTS = """
import os, pathlib, sys
for folder in sys.argv[1:]:
    os.chdir(folder)
    exec(pathlib.Path("request.py").read_text(), {})
"""


def copied(visit: Visit, language: str) -> str:
    """What the dialog puts on the clipboard."""
    visit.page.locator(f"#code-{language}").click()
    visit.page.locator("#copy-code").click()
    expect(visit.page.locator("#copy-note")).to_have_text("Copied.")
    text: str = visit.page.evaluate("navigator.clipboard.readText()")
    return text


def save_code(visit: Visit, folder: Path) -> Path:
    """Both languages' code of the open dialog and the files that it names; closes the dialog."""
    folder.mkdir()
    (folder / "request.sh").write_text(copied(visit, "curl"))
    (folder / "request.py").write_text(copied(visit, "python"))
    for link in visit.page.locator("#code-files a").all():
        name = link.get_attribute("download")
        assert name is not None
        (folder / name).write_bytes(visit.save(link))
    visit.page.keyboard.press("Escape")
    return folder


def test_code_makes_what_is_shown(
    visit: Callable[..., Visit], service: str, require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    require_tool("curl")
    opened = visit(service, permissions=["clipboard-read", "clipboard-write"])
    opened.open()
    page = opened.page
    shown, folders = {}, []

    def remember(name: str) -> None:
        page.locator("#result-code").click()
        folders.append(save_code(opened, tmp_path / name))
        shown[name] = opened.shown()

    opened.generate('it\'s a "red" circle $HOME \\ @x', seed=11, guidance_scale=2.5, sampler="heun")
    remember("generate")

    page.get_by_role("button", name="Edit this result").click()
    page.locator("#use-mask").check()
    page.locator("#mask-controls summary").click()
    page.get_by_role("button", name="Paint rectangle").click()
    opened.set_options("edit", steps=3, seed=12)
    page.locator("#edit-prompt").fill("@change the background to yellow")
    opened.submit("edit")
    opened.finished()
    remember("edit")

    opened.tab("Vary")
    opened.set_options("variation", steps=3, seed=13)
    page.get_by_role("button", name="Vary", exact=True).click()
    expect(page.locator("#caption")).to_contain_text("seed 13")
    remember("variation")

    page.get_by_role("button", name="See latents").click()
    expect(page.locator("#psnr")).to_contain_text("dB")
    page.locator("#form-encode .code").click()
    encoding = save_code(opened, tmp_path / "encode")
    page.locator("#decode-code").click()
    folders.append(save_code(opened, tmp_path / "decode"))
    canvas = page.locator("#latents-decoded")
    shown["decode"] = pixels_at(canvas.evaluate("canvas => canvas.toDataURL()"))

    for folder in (*folders, encoding):
        subprocess.run(["bash", "request.sh"], cwd=folder, check=True)
    subprocess.run([sys.executable, "-c", RUN_SCRIPTS, *folders, encoding], check=True)
    for folder in folders:
        for name in ("out.png", "out-0.png"):
            made = pixels_of((folder / name).read_bytes())
            np.testing.assert_array_equal(made, shown[folder.name], err_msg=f"{folder.name} {name}")
    assert (encoding / "latents.json").stat().st_size > 0
    assert b'"latents"' in (encoding / "encoded.json").read_bytes()
