"""How MkDocs makes a site of the repository's pages, which stay readable where they lie.

The README is its first page, docs/README.md its menu. Formulas become MathML, which browsers show without a script, and
the public names get a page of their docstrings.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
INDEX = "docs/README.md"
MOVED = {"README.md": "index.md", INDEX: "contents.md", "m2df_runtime/serve/page/favicon.svg": "assets/m2df.svg"}
BESIDE = ("benchmarks/README.md", "benchmarks/results/README.md", "benchmarks/results/*.svg")
INTERFACE = "interface.md"
NAMES = {
    "Recognise": ("load", "Model", "SupportBank", "Matcher", "Prediction", "ClassScore", "LabelRules", "explain"),
    "Recordings and cameras": ("Stream", "FrameSource", "Event", "EventRules"),
    "Teach": ("Support", "SupportWatch"),
    "Errors": ("M2dfError", "InputError", "ClipError", "CheckFailed", "EnvironmentMissing"),
}
BLOCK = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take the menu from the tables of docs/README.md, and teach the extensions formulas."""
    menu: list[dict[str, Any]] = [{"First steps": MOVED["README.md"]}, {"All pages": MOVED[INDEX]}]
    for section in (ROOT / INDEX).read_text(encoding="utf-8").split("\n## ")[1:]:
        title, _, rest = section.partition("\n")
        pages = [_place(_resolved(link, INDEX)) for link in re.findall(r"^\| \[.+?\]\((\S+?)\)", rest, re.MULTILINE)]
        menu.append({title: [*pages, INTERFACE] if "python.md" in pages else pages})
    config.nav = menu
    block, inline = ({"name": "math", "class": "math", "format": draw} for draw in (_formula, _formula_in_a_line))
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [block]}
    config.mdx_configs["pymdownx.inlinehilite"] = {"custom_inline": [inline]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs, and the page of the public names."""
    if index := files.get_file_from_path("README.md"):
        files.remove(index)
    beside = [path.relative_to(ROOT).as_posix() for pattern in BESIDE for path in sorted(ROOT.glob(pattern))]
    for path in (*MOVED, *beside):
        files.append(File.generated(config, _place(path), abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, INTERFACE, content=_interface()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where pages lie in the site, and mark formulas so that the extension finds them."""
    if page.file.abs_src_path is None:
        return markdown
    here = Path(page.file.abs_src_path).relative_to(ROOT).as_posix()

    def prose(text: str) -> str:
        text = re.sub(r"<!-- not run: .+? -->\n", "", text)
        text = re.sub(r"\$`([^`]+)`\$", r"`#!math \1`", text)
        return re.sub(r"(?<=\]\()[^)\s]+", lambda found: _in_the_site(found[0], here), text)

    return "".join(part if number % 2 else prose(part) for number, part in enumerate(BLOCK.split(markdown)))


def _place(path: str) -> str:
    """Where a file of the repository lies in the site."""
    return MOVED.get(path, path.removeprefix("docs/"))


def _resolved(link: str, here: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(here), link))


def _in_the_site(link: str, here: str) -> str:
    path, mark, anchor = link.partition("#")
    if not path or "://" in link:
        return link
    return posixpath.relpath(_place(_resolved(path, here)), posixpath.dirname(_place(here)) or ".") + mark + anchor


def _interface() -> str:
    """The page of the public names."""
    lines = ["# All public names", "", "The names of `import m2df_runtime`. [python.md](python.md) shows their use."]
    for title, names in NAMES.items():
        lines += ["", f"## {title}", *(f"\n::: m2df_runtime.{name}" for name in names)]
    return "\n".join(lines)


def _formula(source: str, *rest: object, **more: object) -> str:
    return f'<div class="formula">{convert(source, display="block")}</div>'


def _formula_in_a_line(source: str, *rest: object) -> str:
    return convert(source)
