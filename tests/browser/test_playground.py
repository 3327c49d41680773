"""What a visitor does with the playground: generate, cancel, edit, vary, look at latents."""

import re
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
from playwright.sync_api import expect

from tests.browser.visit import Visit, pixels_of, png_of

HEX_ID = re.compile(r"/v1/jobs/([0-9a-f]{32})/events")


def take_file(visit: Visit, file: bytes) -> None:
    visit.page.locator("#file").set_input_files(
        {"name": "source.png", "mimeType": "image/png", "buffer": file}
    )
    expect(visit.page.locator("#source-picture")).to_be_visible()


def drop_file(visit: Visit, file: bytes, event: str) -> None:
    """Drop or paste a file, by the event that the browser makes of that."""
    visit.page.evaluate(
        """([bytes, type]) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "a.png", { type: "image/png" }));
            const options = { bubbles: true, cancelable: true };
            document.body.dispatchEvent(type === "paste"
                ? new ClipboardEvent("paste", { ...options, clipboardData: data })
                : new DragEvent("drop", { ...options, dataTransfer: data }));
        }""",
        [list(file), event],
    )
    expect(visit.page.locator("#source-picture")).to_be_visible()


def size_note(width: int, height: int) -> str:
    return f"{width} \N{MULTIPLICATION SIGN} {height} pixels"


def test_previews_come_before_the_picture(playground: Visit) -> None:
    page = playground.page
    previews: list[str] = []
    page.expose_function("sawPreview", lambda address: previews.append(address))
    page.evaluate(
        """() => new MutationObserver((changes) => {
            for (const { target } of changes) {
                if (target.closest(".preview")) sawPreview(target.src);
            }
        }).observe(document.querySelector("#frame"),
            { subtree: true, attributes: true, attributeFilter: ["src", "hidden"] })"""
    )
    playground.set_options("generate", steps=20, seed=5)
    page.locator("#generate-chips button").first.click()
    prompt = page.locator("#generate-prompt").input_value()
    playground.submit("generate")
    expect(page.locator("#step")).to_have_text(re.compile(r"Step \d+ of 20"))
    playground.finished()
    assert 1 <= len(set(previews)) <= 3
    expect(page.locator("#caption")).to_contain_text(prompt)
    expect(page.locator("#caption")).to_contain_text("seed 5")
    answer = httpx.post(
        f"{playground.url}v1/images/generations",
        json={"prompt": prompt, "seed": 5},
        headers={"accept": "image/png"},
    )
    np.testing.assert_array_equal(playground.shown(), pixels_of(answer.content))


def test_cancel_ends_the_job(playground: Visit) -> None:
    page = playground.page
    playground.set_options("generate", steps=100)
    page.locator("#generate-prompt").fill("a red circle")
    with page.expect_request(re.compile("/events")) as followed:
        playground.submit("generate")
    page.locator("#form-generate .cancel").click()
    page.locator("body:not(.busy)").wait_for()
    expect(page.locator("#announcement")).to_have_text("Cancelled.")
    expect(page.locator("#frame")).to_contain_text("Pictures appear here")
    expect(page.locator("#alert")).to_be_hidden()
    match = HEX_ID.search(followed.value.url)
    assert match is not None
    deadline = time.monotonic() + 10
    status = ""
    while status != "cancelled":
        assert time.monotonic() < deadline, status
        status = httpx.get(f"{playground.url}v1/jobs/{match[1]}").json()["status"]


def test_edit_inside_a_painted_mask(playground: Visit, source_file: bytes) -> None:
    page = playground.page
    playground.tab("Edit")
    take_file(playground, source_file)
    page.locator("#use-mask").check()
    box = page.locator("#mask").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.3 * box["height"], steps=4)
    page.mouse.up()
    expect(page.locator("#mask-note")).to_have_text(re.compile(r"^\d.* may change"))
    playground.set_options("edit", steps=4)
    page.locator("#edit-prompt").fill("change the background to yellow")
    playground.submit("edit")
    playground.finished()

    before, after = pixels_of(source_file), playground.shown()
    changed = (before != after).any(-1)
    assert not changed[64:].any()  # far below the stroke
    assert changed[30:46, 45:80].mean() > 0.9  # along the stroke

    slider = page.get_by_label("Before", exact=True)
    expect(page.locator(".divider")).to_be_hidden()
    slider.fill("40")
    clip = page.locator(".before").evaluate("element => element.style.clipPath")
    assert clip == "inset(0px 60% 0px 0px)"


def test_a_mask_without_a_pointer(playground: Visit, source_file: bytes) -> None:
    """A rectangle by its numbers, and a part of it taken back."""
    page = playground.page
    playground.tab("Edit")
    take_file(playground, source_file)
    page.locator("#use-mask").check()
    page.locator("#mask-controls summary").click()
    for tool, numbers in (("paint", (16, 32, 64, 48)), ("erase", (16, 32, 64, 16))):
        page.locator(f"#tool-{tool}").click()
        for name, value in zip(("left", "top", "width", "height"), numbers, strict=True):
            page.locator(f"#rect-{name}").fill(str(value))
        page.get_by_role("button", name="Paint rectangle").click()
    playground.set_options("edit", steps=2)
    page.locator("#edit-prompt").fill("add a red star")
    playground.submit("edit")
    playground.finished()
    changed = (pixels_of(source_file) != playground.shown()).any(-1)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (48, 79, 16, 79)


def test_dropped_and_pasted_pictures_are_taken(playground: Visit) -> None:
    page = playground.page
    small = png_of(np.full((24, 40, 3), 90, np.uint8))
    drop_file(playground, small, "paste")
    expect(page.get_by_role("tab", name="Edit")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#source-note")).to_have_text(size_note(40, 24))
    drop_file(playground, png_of(np.full((32, 16, 3), 90, np.uint8)), "drop")
    expect(page.locator("#source-note")).to_have_text(size_note(16, 32))


def test_a_photograph_is_reduced_before_it_is_sent(playground: Visit) -> None:
    playground.tab("Edit")
    take_file(playground, png_of(np.zeros((40, 4096, 3), np.uint8)))
    expect(playground.page.locator("#source-note")).to_have_text(size_note(2048, 20))


def test_variations_of_a_result_and_their_history(playground: Visit) -> None:
    page = playground.page
    first = playground.generate("a red circle", seed=3)
    playground.tab("Vary")
    playground.set_options("variation", n=2, steps=2, seed=8)
    page.get_by_role("button", name="Vary", exact=True).click()
    expect(page.locator("#history-list li")).to_have_count(3)
    page.locator("body:not(.busy)").wait_for()
    expect(page.locator("#frame button")).to_have_count(2)
    page.get_by_role("button", name="Picture 2").click()
    expect(page.locator("#caption")).to_contain_text("seed 9")

    page.locator("#history-list button").last.click()
    np.testing.assert_array_equal(playground.shown(), first)
    expect(page.locator("#history-list [aria-current]")).to_have_count(1)
    download = page.get_by_role("link", name="Download")
    assert download.get_attribute("download") == "rpiae-3.png"
    np.testing.assert_array_equal(pixels_of(playground.save(download)), first)

    playground.tab("Generate")
    page.get_by_role("button", name="Use seed again").click()
    expect(page.locator("#generate-seed")).to_have_value("3")
    page.get_by_role("button", name="Edit this result").click()
    expect(page.locator("#edit-prompt")).to_be_focused()
    expect(page.locator("#edit-chips")).to_contain_text("remove the circle")


def test_latents_and_back(playground: Visit) -> None:
    """The fake model keeps the mean colour of each cell, so that one plain colour survives."""
    page = playground.page
    playground.tab("Latents")
    take_file(playground, png_of(np.full((64, 128, 3), (200, 40, 90), np.uint8)))
    playground.submit("encode")
    expect(page.locator("#psnr")).to_have_text(re.compile(r"PSNR (Infinity|[4-9]\d\.\d) dB"))
    expect(page.locator("#channels button")).to_have_count(32)
    sizes: Any = page.locator("#latents-decoded").evaluate(
        "canvas => [canvas.width, canvas.height]"
    )
    assert sizes == [128, 64]
    painted: Any = page.locator("#channels canvas").first.evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(0, 4, 1, 1).data]"
    )
    assert painted[0] > painted[2]  # the red channel is above zero: orange
    page.locator("#channels button").first.click()
    expect(page.locator("#channels button").first).to_have_attribute("aria-pressed", "true")
    page.locator("#decode").click()
    expect(page.locator("#psnr")).to_have_text(re.compile(r"PSNR 1\d\.\d dB"))


def test_errors_say_what_to_change(playground: Visit) -> None:
    page = playground.page
    playground.set_options("generate", seed="tomorrow")
    page.locator("#generate-prompt").fill("a red circle")
    playground.submit("generate")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("seed")
    expect(alert).to_contain_text("HTTP 422")
    expect(page.locator("#generate-seed")).to_be_focused()
    expect(page.locator("#generate-seed")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("#generate-seed-error")).to_be_visible()
    playground.forgive(422)

    playground.generate("a red circle", seed=1)
    expect(alert).to_be_hidden()
    expect(page.locator("[aria-invalid]")).to_have_count(0)

    playground.tab("Edit")
    playground.submit("edit")
    expect(alert).to_contain_text("There is no picture yet")


def test_words_that_the_model_does_not_know(playground: Visit) -> None:
    playground.generate("a red zeppelin")
    expect(playground.page.locator("#warning")).to_have_text("The model does not know: zeppelin.")


def test_a_model_of_classes_offers_their_names(visit: Callable[..., Visit], service: str) -> None:
    card = httpx.get(f"{service}v1/models").json()["data"][0]
    names = ["tench, Tinca tinca", "golden retriever", "crane"]
    card["manifest"] |= {"class_names": names, "tasks": ["generate", "encode"], "draws": {}}
    opened = visit(service)
    opened.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [card]}))
    opened.open()
    page = opened.page
    expect(page.get_by_role("tab")).to_have_text(["Generate", "Latents"])
    expect(page.locator("#generate-chips button")).to_have_text(
        ["tench", "golden retriever", "crane"]
    )
    expect(page.locator("#classes option")).to_have_count(3)
    expect(page.locator("#generate-negative_prompt")).to_have_count(0)
    with page.expect_request("**/v1/images/generations") as sent:
        page.get_by_label("Class").fill("crane")
        page.keyboard.press("Enter")
    assert sent.value.post_data_json["prompt"] == "crane"
    opened.finished()


def test_a_tokenizer_alone_opens_on_its_latents(visit: Callable[..., Visit], service: str) -> None:
    card = httpx.get(f"{service}v1/models").json()["data"][0]
    card["manifest"]["tasks"] = ["encode", "decode"]
    opened = visit(service)
    opened.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [card]}))
    opened.open()
    expect(opened.page.get_by_role("tab")).to_have_text(["Latents"])
    drop_file(opened, png_of(np.full((64, 64, 3), 90, np.uint8)), "drop")
    opened.submit("encode")
    expect(opened.page.locator("#psnr")).to_contain_text("dB")


def test_it_works_below_a_path(visit: Callable[..., Visit], service: str) -> None:
    """As behind a proxy that takes a prefix off: every address is relative."""
    below = visit(f"{service}pictures/rpiae/")
    prefix = "/pictures/rpiae/"
    asked: list[str] = []

    def pass_on(route: Any) -> None:
        asked.append(route.request.url)
        path = route.request.url.removeprefix(service).removeprefix(prefix.lstrip("/"))
        route.fulfill(response=route.fetch(url=f"{service}{path}"))

    below.page.route("**/*", pass_on)
    below.open()
    below.generate("a red circle", seed=2)
    assert len(asked) > 15
    assert [url for url in asked if prefix not in url] == []
    below.page.unroute_all(behavior="ignoreErrors")
