"""The documentation as a site: built without a warning, whole, and read without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from page_tools import CHROMIUM, PATIENCE
from playwright.sync_api import expect, sync_playwright

import m2df_runtime

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(place)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return place


def loaded(page: Path) -> Iterator[str]:
    """What a browser fetches for a page without being asked to."""

    class Reader(HTMLParser):
        found: list[str]

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            if tag not in ("a", "base"):
                self.found += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]

    reader = Reader()
    reader.found = []
    reader.feed(page.read_text(encoding="utf-8"))
    yield from reader.found


def test_every_page_is_in_it_and_loads_nothing_from_elsewhere(site: Path) -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    front = (site / "index.html").read_text(encoding="utf-8")
    menu = re.findall(r'class="md-nav__title" for="__nav_\d+">.*?</span>\s*(.+?)\s*</label>', front, re.DOTALL)
    assert menu == re.findall(r"^## (.+)$", index, re.MULTILINE)
    pages = sorted(site.rglob("*.html"))
    names = {page.relative_to(site).as_posix() for page in pages}
    wanted = {f"{page.stem}.html" for page in (ROOT / "docs").glob("*.md") if page.name != "README.md"}
    others = {"index.html", "contents.html", "interface.html", "404.html"}
    assert names == wanted | others | {"benchmarks/index.html", "benchmarks/results/index.html"}
    for page in pages:
        foreign = [link for link in loaded(page) if re.match(r"(?:\w+:)?//", link)]
        assert foreign == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:\w+:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_formulas_and_public_names_are_shown(site: Path) -> None:
    for name in ("methods", "explain"):
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        formulas = re.findall(r"<math.*?</math>", (site / f"{name}.html").read_text(encoding="utf-8"), re.DOTALL)
        assert len(formulas) == len(re.findall(r"```math|\$`", text))
        assert [formula for formula in formulas if "\\" in formula] == []  # a command that is not known stays as it is
    interface = (site / "interface.html").read_text(encoding="utf-8")
    assert [name for name in m2df_runtime.__all__ if f'id="m2df_runtime.{name}"' not in interface] == []


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_it_is_searched_where_it_lies_on_a_disk(site: Path) -> None:
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, timeout=PATIENCE)
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(PATIENCE)
        asked, wrong = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.goto((site / "methods.html").as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0
        page.locator("label.md-header__button[for=__search]").click()
        page.get_by_role("textbox", name="Search").press_sequentially("broker")
        found = page.locator(".md-search-result__link").first
        expect(found).to_have_attribute("href", re.compile(r"live\.html"))
        browser.close()
    assert [url for url in asked if not re.match(r"(?:file|data|blob):", url)] == []
    assert wrong == []
