"""Take the pictures of the page that the documentation shows, from the shipped clips: `python docs/screenshots.py`.

It needs what the tests need, and Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "tests" / "runtime")]

from page_tools import CHROMIUM, PATIENCE, Camera, clip_of, serving  # noqa: E402

from m2df_runtime.bundle.shipped import demo_queries  # noqa: E402

WIDTH, HEIGHT = 1180, 860
COLOURS = 128  # a page has few; a picture of it stays below 150 kB
SHOWN, TAUGHT = "high_knees", ("high_knees", "side_bend", "clap")


def main() -> None:
    """Write page.png and why.png beside this script."""
    if CHROMIUM is None:
        sys.exit("error: there is no Chromium (apt-get install chromium)")
    expect.set_options(timeout=PATIENCE)
    query = demo_queries() / f"{SHOWN}.mp4"
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        camera = Camera(Path(place, "camera.mjpeg"))
        camera.plays(query)
        for label in TAUGHT:
            shutil.copytree(clip_of(label).parent, Path(place, "actions", label.replace("_", " ")))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=camera.options, timeout=PATIENCE)
        with serving(Path(place, "actions")) as server:
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, permissions=["camera"])
            page.set_default_timeout(PATIENCE)
            page.goto(server.address)
            expect(page.locator("#winner")).to_have_text(SHOWN.replace("_", " "))
            save(page, "page.png")
            page.locator("#clip").set_input_files(query)
            page.locator("#results").get_by_role("button", name="Why?").click()
            expect(page.frame_locator("#why-page").locator("h1, h2").first).to_be_visible()
            save(page, "why.png")
            page.close()
        browser.close()


def save(page: Page, name: str) -> None:
    """Save what is seen of a page in few colours."""
    whole = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    whole.quantize(COLOURS, dither=Image.Dither.NONE).save(DOCS / name, optimize=True)


if __name__ == "__main__":
    main()
