"""The page in a real browser, with a camera that plays clips, before a real server with the shipped model.

Nothing here waits for a time: a camera plays one action over and over, and the page is asked until it says so.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from page_tools import CHROMIUM, PATIENCE, Camera, clip_of, serving
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

import m2df_runtime
from m2df_runtime.bundle.shipped import demo_queries, demo_support

PAGE = Path(m2df_runtime.__file__).parent / "serve" / "page"
FIRST, SECOND, THIRD = "high_knees", "side_bend", "golf_swing"  # none of them looks like another
GONE = re.compile(r"WebSocket connection to|Failed to load resource")  # what a browser says of a server that is gone

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Camera:
    return Camera(tmp_path_factory.mktemp("camera") / "camera.mjpeg")


@pytest.fixture(scope="module")
def browser(camera: Camera) -> Iterator[Browser]:
    expect.set_options(timeout=PATIENCE)
    camera.plays(clip_of(FIRST))
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=camera.options, timeout=PATIENCE)
        yield found
        found.close()


@contextmanager
def opened(browser: Browser, **options: object) -> Iterator[BrowserContext]:
    """A browser's window, of which the pages must say nothing that went wrong."""
    wrong: list[str] = []
    context = browser.new_context(reduced_motion="reduce", **options)  # type: ignore[arg-type]
    context.set_default_timeout(PATIENCE)
    context.on("weberror", lambda error: wrong.append(str(error.error)))
    context.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    yield context
    context.close()
    assert [one for one in wrong if not GONE.search(one)] == []


def recorded(page: Page, least: int) -> None:
    """Wait until the page says that it has recorded so many seconds."""
    expect(page.locator("#recorded")).to_have_text(re.compile(rf"^([{least}-9]|\d\d)\."))


def record(page: Page, seconds: int = 3) -> None:
    """Hold the button for a while, as the page counts it, from when there is a camera to record from."""
    expect(page.locator("#record")).to_be_enabled()
    page.locator("#record").hover()
    page.mouse.down()
    recorded(page, seconds)
    page.mouse.up()
    expect(page.locator("#handle-end")).to_be_visible()


def teach(page: Page, label: str, clips: int) -> None:
    page.locator("#name").fill(label)
    page.keyboard.press("Enter")
    expect(clips_of(page, label)).to_have_count(clips)
    expect(page.locator("#review")).to_be_hidden()


def card(page: Page, label: str) -> Locator:
    return page.locator(".card").filter(has=page.get_by_role("heading", name=label, exact=True))


def clips_of(page: Page, label: str) -> Locator:
    return card(page, label).locator(".clip")


def shows(page: Page, camera: Camera, *clips: Path) -> None:
    """Turn the page's camera to something else."""
    camera.plays(*clips)
    page.reload()
    expect(page.locator("#record")).to_be_enabled()


@pytest.mark.slow
def test_what_is_shown_is_recognised_corrected_and_carried_away(browser: Browser, camera: Camera, tmp_path: Path):
    with serving(tmp_path / "actions") as server, opened(browser, permissions=["camera"]) as context:
        page = context.new_page()
        camera.plays(clip_of(FIRST))
        page.goto(server.address)
        expect(page.locator("#steps .next")).to_contain_text("Record an action")
        record(page)
        teach(page, FIRST, 1)
        expect(page.locator("#steps .next")).to_contain_text("Record another")
        record(page, 4)
        teach(page, FIRST, 2)

        shows(page, camera, clip_of(SECOND))
        for number in (1, 2):
            record(page)
            teach(page, SECOND, number)
        expect(page.locator("#steps")).to_be_hidden()
        bars = page.locator(".bar")
        expect(bars).to_have_count(3)
        heights = {round(bar.bounding_box()["height"]) for bar in bars.all()}  # type: ignore[index]
        assert len(heights) == 1
        expect(page.locator("#winner")).to_have_text(SECOND)
        shows(page, camera, clip_of(FIRST))
        expect(page.locator("#winner")).to_have_text(FIRST)
        expect(page.locator("#said")).to_have_text(FIRST)  # what is read out

        shows(page, camera, clip_of(THIRD))
        expect(page.locator("#winner")).to_have_text("None of these")
        page.get_by_role("button", name="That is wrong").click()
        moment = page.locator("#unsure-list .moment").first
        moment.locator(".other input").fill(THIRD)
        moment.get_by_role("button", name="Teach", exact=True).click()
        expect(clips_of(page, THIRD)).to_have_count(1)
        page.get_by_role("button", name="Undo: added class").click()
        expect(card(page, THIRD)).to_have_count(0)
        expect(page.get_by_role("button", name="Redo what was undone")).to_be_visible()

        clips_of(page, SECOND).first.hover()
        clips_of(page, SECOND).first.get_by_role("button").click()
        expect(clips_of(page, SECOND)).to_have_count(1)
        page.locator("#undo").click()
        expect(clips_of(page, SECOND)).to_have_count(2)
        page.get_by_role("button", name=f"Rename {SECOND}").click()
        page.get_by_role("textbox", name=f"New name of {SECOND}").fill("bend")
        page.keyboard.press("Enter")
        expect(clips_of(page, "bend")).to_have_count(2)

        before = tried(page)
        with page.expect_download() as download:
            page.get_by_role("button", name="Export").click()
        download.value.save_as(tmp_path / "carried.zip")

        server.stop()
        expect(page.locator("#trouble")).to_contain_text("does not answer")
        shutil.rmtree(tmp_path / "actions")
        server.start()
        expect(page.locator("#trouble")).to_be_hidden()
        expect(page.locator(".card")).to_have_count(0)
        page.locator("#import").set_input_files(tmp_path / "carried.zip")
        expect(page.locator(".card")).to_have_count(2)
        expect(page.locator("#link")).to_have_text("Live")
        assert tried(page) == before


def tried(page: Page) -> list[str]:
    """The answers to two clips."""
    page.locator("#clip").set_input_files([clip_of(FIRST, 2), clip_of(SECOND, 2)])
    expect(page.locator("#results .answer")).to_have_count(2)
    said = page.locator("#results .words").all_inner_texts()
    for _ in said:
        page.locator("#results .away").first.click()
    return said


def test_why_is_shown_and_a_wrong_answer_is_taught(browser: Browser, tmp_path: Path):
    support = tmp_path / "actions"
    for label in (FIRST, SECOND):
        shutil.copytree(demo_support() / label, support / label)
    with serving(support, "--token", "the right one, and long") as server, opened(browser) as context:
        page = context.new_page()
        page.goto(server.address)
        field = page.get_by_role("textbox", name="Token")
        field.fill("a wrong one")
        page.keyboard.press("Enter")
        expect(page.get_by_text("That is not the token")).to_be_visible()
        expect(page.locator(".card")).to_have_count(0)
        field.fill("the right one, and long")
        page.keyboard.press("Enter")
        expect(page.locator(".card")).to_have_count(2)
        expect(page.locator("#token")).to_be_hidden()

        page.locator("#clip").set_input_files(demo_queries() / f"{THIRD}.mp4")
        page.get_by_role("button", name="Why?").click()
        why = page.frame_locator("#why-page")
        expect(why.locator("figure svg").first).to_be_visible()
        page.get_by_role("button", name="Close").click()
        page.locator("#results").get_by_text("That is wrong").click()
        field = page.locator("#results .other input")
        field.fill("<img src=x onerror=alert(1)>")
        page.locator("#results").get_by_role("button", name="Teach", exact=True).click()
        expect(clips_of(page, "<img src=x onerror=alert(1)>")).to_have_count(1)
        assert page.locator(".card img[src='x']").count() == 0

        page.get_by_role("button", name=f"Rename {FIRST}").click()
        last = page.get_by_role("button", name="Keep the name")
        button, whole = (one.bounding_box() for one in (last, page.locator(".card", has=last)))
        assert button and whole and button["x"] + button["width"] < whole["x"] + whole["width"]
        page.get_by_role("textbox", name=f"New name of {FIRST}").fill(SECOND)
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Join the two").click()
        expect(clips_of(page, SECOND)).to_have_count(4)
        expect(card(page, FIRST)).to_have_count(0)


def test_a_phone_without_a_camera_teaches_from_videos(browser: Browser, tmp_path: Path):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with serving(tmp_path / "actions") as server, opened(browser, **phone) as context:
        page = context.new_page()
        page.goto(server.address)
        expect(page.locator("#no-camera-why")).to_contain_text("Allow it beside the address")
        expect(page.locator("#record")).to_be_hidden()
        page.locator("#teach-files").set_input_files([clip_of(FIRST, 1), clip_of(FIRST, 2)])
        teach(page, FIRST, 2)
        page.get_by_role("button", name=f"Rename {FIRST}").tap()
        assert overflow(page) <= 0
        page.keyboard.press("Escape")
        page.locator("#clip").set_input_files({"name": "no.mp4", "mimeType": "video/mp4", "buffer": b"no video"})
        expect(page.locator("#results .failed")).to_contain_text("no.mp4")
        assert overflow(page) <= 0
        assert nameless(page) == []
        context.grant_permissions(["camera"])
        page.get_by_role("button", name="Try again").tap()
        expect(page.locator("#record")).to_be_visible()
        assert overflow(page) <= 0


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than the screen."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_what_was_shown_is_denied_and_another_name_is_at_hand(browser: Browser, camera: Camera, tmp_path: Path):
    support = tmp_path / "actions"
    for label in (FIRST, SECOND):
        (support / label).mkdir(parents=True)
        shutil.copy(clip_of(label), support / label)
    with serving(support) as server, opened(browser, permissions=["camera"]) as context:
        page = context.new_page()
        shows_at(page, camera, server.address, clip_of(FIRST))
        bar = page.locator(".bar.none .share")
        expect(bar).to_have_text("not known yet: teach a second clip")
        wrong, moments = page.get_by_role("button", name="That is wrong", exact=True), page.locator("#unsure .moment")
        wrong.click()
        denied = moments.locator(".answer").first.inner_text()
        label, other = (FIRST, SECOND) if FIRST in denied else (SECOND, FIRST)
        assert denied == f"Not “{label}”?"
        choices = moments.first.locator(".choices > .row > button")
        expect(choices.first).to_be_focused()
        assert choices.all_inner_texts() == [other, "nothing", label]
        for _ in range(2):
            wrong.click()
        expect(page.locator("#unsure .moment:visible")).to_have_count(2)
        page.get_by_role("button", name="Show 1 more").click()
        expect(page.locator("#unsure .moment:visible")).to_have_count(3)
        page.get_by_role("button", name="Forget all of these").click()
        wrong.click()
        expect(choices.first).to_be_focused()
        other = choices.first.inner_text()
        page.keyboard.press("Enter")
        expect(clips_of(page, other)).to_have_count(2)
        expect(bar).to_have_text(re.compile(r"\d %"))


def nameless(page: Page) -> list[str]:
    """What can be pressed or filled in, and has no name that can be read out."""
    tree = page.locator("body").aria_snapshot()
    return re.findall(r"- (?:button|textbox|combobox|slider|meter|link)(?: \[[^\]]*\])*(?:$|:)", tree, re.MULTILINE)


def test_hands_on_the_keyboard_record_and_correct(browser: Browser, camera: Camera, tmp_path: Path):
    with serving(tmp_path / "actions") as server, opened(browser, permissions=["camera"]) as context:
        page = context.new_page()
        shows_at(page, camera, server.address, clip_of(FIRST))
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")  # past all that is above
        expect(page.locator("#record")).to_be_focused()
        page.keyboard.down(" ")
        recorded(page, 3)
        page.keyboard.up(" ")
        expect(page.locator("#name")).to_be_focused()
        start = page.get_by_role("slider", name="Where it begins")
        start.focus()
        before = float(start.get_attribute("aria-valuenow") or "nan")
        page.keyboard.press("ArrowRight")
        assert float(start.get_attribute("aria-valuenow") or "nan") > before
        page.keyboard.press("Home")
        assert float(start.get_attribute("aria-valuenow") or "nan") == 0
        assert nameless(page) == []
        page.locator("#name").focus()
        teach(page, FIRST, 1)
        expect(page.locator("#record")).to_be_focused()

        page.keyboard.press("Enter")  # pressed, not held: it counts down
        expect(page.locator("#count")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#count")).to_be_hidden()
        expect(page.locator("#record")).to_have_text("Hold to record")


def shows_at(page: Page, camera: Camera, address: str, *clips: Path) -> None:
    camera.plays(*clips)
    page.goto(address)
    expect(page.locator("#record")).to_be_enabled()


def test_still_ends_are_cut_off_as_the_server_does(browser: Browser):
    """15 frames a second, of which every fifth is compared with the one before; 0.3 s are kept on both sides."""
    rule = (PAGE / "motion.js").read_text(encoding="utf-8")
    address = f"data:text/javascript,{quote(rule)}"
    script = "async ([address, frames]) => (await import(address)).movingPart(frames)"

    def kept(value: Callable[[int], list[float]]) -> dict[str, object]:
        frames = [{"time": number / 15, "grid": value(number)} for number in range(60)]
        with opened(browser) as context:
            return context.new_page().evaluate(script, [address, frames])

    moves = kept(lambda number: [100.0] * 11 + [10.0 * min(max(number, 20), 40)])
    assert moves == {"first": 16, "last": 44, "moved": True}  # 20 / 15 - 0.3 and 40 / 15 + 0.3 seconds
    still = {"first": 0, "last": 59, "moved": False}
    assert kept(lambda number: [100.0 + 3.9 * (number > 30)] * 6 + [100.0] * 6) == still  # a codec's breath
    assert kept(lambda number: [100.0 + 2.0 * number] * 12) == still  # the camera's exposure


def test_nothing_is_recorded_for_as_long_as_one_likes_and_forgotten(browser: Browser, camera: Camera, tmp_path: Path):
    support = tmp_path / "actions"
    for label in (FIRST, SECOND):
        shutil.copytree(demo_support() / label, support / label)
    with serving(support) as server, opened(browser, permissions=["camera"]) as context:
        page = context.new_page()
        shows_at(page, camera, server.address, clip_of(THIRD))
        expect(page.locator(".card")).to_have_count(2)
        button, minute = page.locator("#record"), page.get_by_role("button", name="Record a minute of nothing")
        clips, rejection = page.locator("#nothing-clips .clip"), page.locator("#rejection")
        minute.click()
        expect(page.locator("#count")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#count")).to_be_hidden()

        minute.click()
        expect(button).to_be_focused()
        expect(button).to_have_text("Stop")
        expect(page.locator("#recorded")).to_have_text(re.compile(r"^([1-4]?\d|5[0-5]) s left"))  # of 59
        page.keyboard.press("Enter")
        expect(button).to_have_text("Hold to record")
        expect(page.locator(".toast")).to_contain_text(re.compile(r"Sending|kept"))
        expect(page.locator(".toast")).to_contain_text(re.compile(r"^\d+ clips? of nothing kept"))
        expect(clips).not_to_have_count(0)
        expect(rejection).to_contain_text("background")
        expect(minute).to_be_enabled()
        expect(clips.first.locator("img")).not_to_have_js_property("naturalWidth", 0)

        count = clips.count()
        clips.first.hover()
        clips.first.get_by_role("button").click()
        expect(clips).to_have_count(count - 1)
        page.locator("#undo").click()
        expect(clips).to_have_count(count)
