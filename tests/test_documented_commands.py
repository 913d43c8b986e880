"""README and docs: links lead somewhere, named files and options exist, quoted messages are real, commands run."""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import pytest
from test_architecture import COMMANDS, ROOMS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / "benchmarks" / "README.md", ROOT / "benchmarks" / "results" / "README.md"]
PACKAGES = ("m2df_runtime", "m2df_train", "m2df_export")
NOT_RUN = re.compile(r"<!-- not run: (.{5,}) -->")
LANGUAGES = {"sh", "python", "text", "yaml", "math"}
EVERY_PAGE = pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.relative_to(ROOT).as_posix())


class Block(NamedTuple):
    """A fenced block: its page, first line, language and text, and why it is not run."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        mark = line.strip()
        if not mark.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        said = NOT_RUN.fullmatch(lines[start - 1].strip())
        text = "\n".join(lines[start + 1 : number])
        yield Block(page, start + 1, lines[start].strip()[3:], text, said and said[1])
        start = None
    assert start is None, f"{page}: a block without end"


def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELL = [block for block in BLOCKS if block.language == "sh"]


def name(block: Block) -> str:
    return f"{block.page.name}:{block.line}"


def anchor(heading: str) -> str:
    """The anchor that a renderer gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@EVERY_PAGE
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, fragment = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or not place.is_relative_to(ROOT):
            wrong.append(target)
        elif fragment:
            headings = re.findall(r"^#+ (.+)$", place.read_text(encoding="utf-8"), re.MULTILINE)
            wrong += [] if fragment in map(anchor, headings) else [target]
    assert wrong == []


@EVERY_PAGE
def test_every_file_and_name_in_a_file_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wrong = [
        path
        for path in re.findall(r"`((?:m2df_\w+|tests|benchmarks|docs)/[\w./-]*)`", text)
        if not (ROOT / path).exists()
    ]
    modules = re.findall(r"(?:python|nproc_per_node \d+) -m ((?:m2df_\w+|benchmarks)[\w.]*)", text)
    modules += re.findall(r"^(?:from|import) (m2df_\w+[\w.]*)", text, re.MULTILINE)
    for module in modules:
        place = ROOT.joinpath(*module.split("."))
        if not (place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()):
            wrong.append(module)
    for names, path in re.findall(r"((?:`\w+`(?:, | and )?)+) in `(m2df_[\w./]+\.py)`", text):
        found = {
            node.name for node in ast.walk(parsed(ROOT / path)) if isinstance(node, ast.ClassDef | ast.FunctionDef)
        }
        found |= set(re.findall(r"^(\w+)\b.* = ", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE))
        wrong += [f"{one} in {path}" for one in re.findall(r"\w+", names.replace(" and ", " ")) if one not in found]
    assert wrong == []


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [p.name for p in PAGES[1:] if p.name != "README.md" and f"]({p.name})" not in index] == []


@pytest.mark.parametrize("package", ROOMS)
def test_the_table_of_rooms_is_that_of_the_imports(package: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split(f"### {package}\n")[1].split("\n#")[0]
    table = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert tuple(reversed(table)) == ROOMS[package]


def test_formats_are_described_whole() -> None:
    from m2df_runtime.bank.file import TENSORS, BankIndex, ClassEntry, ClipEntry
    from m2df_runtime.bundle.bundle import Bundle
    from m2df_runtime.bundle.manifest import BundleFile, GraphInfo, Manifest, PrecisionParity, SourceInfo, TextInfo
    from m2df_runtime.bundle.shipped import demo_bundle
    from m2df_runtime.pixels.spec import ClipSpec

    page = (ROOT / "docs" / "bundle-and-bank.md").read_text(encoding="utf-8")
    schemas = (BundleFile, GraphInfo, Manifest, PrecisionParity, SourceInfo, TextInfo, ClipSpec)
    fields = {field for schema in (*schemas, BankIndex, ClassEntry, ClipEntry) for field in schema.model_fields}
    graphs = Bundle.open(demo_bundle()).manifest.graphs.values()
    tensors = {tensor.name for graph in graphs for tensor in (*graph.inputs, *graph.outputs)}
    assert [name for name in sorted({*fields, *tensors, *TENSORS}) if f"`{name}`" not in page] == []


def test_suffixes_and_limits_are_those_of_the_reader() -> None:
    from m2df_runtime.clips.limits import MAX_ANIMATION_PIXELS, MAX_BYTES, MAX_PIXELS
    from m2df_runtime.clips.listing import VIDEO_SUFFIXES
    from m2df_runtime.clips.pictures import ANIMATED_SUFFIXES, IMAGE_SUFFIXES

    page = (ROOT / "docs" / "clips.md").read_text(encoding="utf-8")
    for suffixes in (VIDEO_SUFFIXES, ANIMATED_SUFFIXES, IMAGE_SUFFIXES):
        assert f"`{' '.join(sorted(suffixes))}`" in page
    for number in (f"{MAX_PIXELS:,} pixels", f"{MAX_ANIMATION_PIXELS:,} pixels", f"{MAX_BYTES >> 30} GiB"):
        assert number in page


def test_every_message_of_troubleshooting_is_one_of_the_code() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) >= 40
    templates = [t for package in PACKAGES for path in (ROOT / package).rglob("*.py") for t in strings(path)]
    unknown = []
    for message in messages:
        parts = [re.escape(part) for part in message.removeprefix("…: ").split("…")]
        pattern = re.compile("…".join(parts).removesuffix("…"))
        unknown += [] if any(pattern.search(template) for template in templates) else [message]
    assert unknown == []


def strings(path: Path) -> Iterator[str]:
    """Every text in a file, with … in place of what is filled in."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%(?:\.\d)?[sdf]", "…", node.value)


def test_the_image_is_made_of_what_is_there() -> None:
    """Nothing here builds it: what it installs are extras of ours, and what it is sent are our files."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (extras,) = re.findall(r"'/m2df\[(.+?)\]'", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert all(f"\n{extra} = [" in project for extra in extras.split(","))
    sent = re.findall("^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert all((ROOT / name).exists() for name in sent)
    assert {*PACKAGES, "pyproject.toml", "constraints.txt", "README.md", "LICENSE"} == {*sent}


def test_every_block_says_what_it_is() -> None:
    assert [f"{name(b)} {b.language}" for b in BLOCKS if b.language not in LANGUAGES] == []
    assert len([b for b in SHELL if b.reason is None]) >= 8


def commands(text: str) -> Iterator[list[str]]:
    """The m2df commands of a block of shell lines, each as its words."""
    for line in text.replace("\\\n", "").splitlines():
        for part in line.split(" | "):
            words = shlex.split(part, comments=True)
            while words and "=" in words[0]:
                words = words[1:]
            if words[:1] == ["torchrun"]:
                words = ["m2df-train", *words[words.index("-m") + 2 :]]
            if words and Path(words[0]).name in COMMANDS:
                yield [Path(words[0]).name, *words[1:]]


def in_prose() -> list[tuple[str, list[str]]]:
    """Commands in running text and tables that name options."""
    found = []
    for page in PAGES:
        for code in re.findall(r"`(m2df-(?:run|train|export|eval|doctor) [^`]+)`", prose(page)):
            found.append((page.name, shlex.split(code)))
    return found


@functools.cache
def command_of(command: str) -> click.Command:
    import importlib

    return importlib.import_module(COMMANDS[command]).cli


def test_commands_that_are_not_run_have_the_options_they_name() -> None:
    """Parsed and checked as the command itself would, up to the point where it begins to work."""
    found = [(name(b), words) for b in SHELL if b.reason for words in commands(b.text)] + in_prose()
    assert len(found) > 20
    wrong = []
    for where, (command, *arguments) in found:
        try:
            parse(command_of(command), command, arguments)
        except click.ClickException as error:
            wrong.append(f"{where}: {shlex.join([command, *arguments])}: {error.format_message()}")
    assert wrong == []


def parse(command: click.Command, called: str, arguments: list[str]) -> None:
    context = command.make_context(called, list(arguments))
    rest = [*context._protected_args, *context.args] if hasattr(context, "_protected_args") else context.args
    if rest and isinstance(command, click.Group):
        below = command.get_command(context, rest[0])
        assert below is not None, f"{called} has no {rest[0]}"
        parse(below, f"{called} {rest[0]}", rest[1:])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the pages' commands name, made of the shipped clips and model."""
    from m2df_runtime.bundle.shipped import demo_bundle, demo_queries, demo_support

    place = tmp_path_factory.mktemp("documented")
    queries = sorted(demo_queries().iterdir())
    # Whoever ran the demo has a bank beside its clips.
    shutil.copytree(demo_support(), place / "actions", ignore=shutil.ignore_patterns(".*"))
    actions = sorted((place / "actions").iterdir())
    for clip, query in zip(("clip.mp4", "a.mp4", "b.mp4"), queries, strict=False):
        shutil.copy(query, place / clip)
    for folder in ("new", "cam3"):
        (place / folder).mkdir()
        for query in queries[:2]:
            shutil.copy(query, place / folder)
    write_long(place / "long.mp4", place / "events.csv")
    (place / "days").mkdir()
    shutil.copy(place / "long.mp4", place / "days" / "monday.mp4")
    rows = [f"{folder.name},a person doing {folder.name}" for folder in actions]
    (place / "labels.csv").write_text("\n".join(["class,text", *rows]) + "\n", encoding="utf-8")
    for bundle in ("old", "mine"):
        with zipfile.ZipFile(demo_bundle()) as archive:
            archive.extractall(place / "bundles" / bundle)
    for folder in actions:
        clips = [*sorted(folder.iterdir()), demo_queries() / f"{folder.name}.mp4"]
        for number, clip in enumerate(clips * 2, 1):
            write_copy(clip, place / "clips" / folder.name / f"{folder.name}_person{number}.mp4", mirrored=number > 3)
    commands_of = place / "bin"
    commands_of.mkdir()
    for command, module in COMMANDS.items():
        script = commands_of / command
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n', encoding="utf-8")
        script.chmod(0o755)
    return place


def write_copy(clip: Path, target: Path, *, mirrored: bool) -> None:
    """A clip, or the clip seen in a mirror: other content, the same action."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not mirrored:
        shutil.copy(clip, target)
        return
    import av

    from m2df_runtime.clips.opening import open_source

    source = open_source(clip)
    frames = source.read(range(source.n_frames))[:, :, ::-1]
    with av.open(str(target), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.copy(), format="rgb24")))
        container.mux(stream.encode())


def write_long(recording: Path, table: Path) -> None:
    """Some seconds of the shipped recording, and what happens in them."""
    from m2df_runtime.bundle.shipped import demo_recording
    from m2df_runtime.clips.opening import open_source
    from m2df_train.synthetic import demo_clips

    start, end = 26.0, 35.0
    source = open_source(demo_recording())
    frames = source.read(range(round(start * source.fps), round(end * source.fps)))
    demo_clips.encode_mp4(recording, frames, source.fps)
    rows = [
        f"monday.mp4,{action.start - start:.2f},{action.end - start:.2f},{action.label}"
        for action in demo_clips.demo_recording().truth
        if start < action.start and action.end < end
    ]
    assert rows
    table.write_text("\n".join(["recording,start,end,label", *rows]) + "\n", encoding="utf-8")


# python.md has a test of its own, in which its blocks follow one another.
PYTHON = [block for block in BLOCKS if block.language == "python" and block.page.name != "python.md"]
RUN = [block for block in [*SHELL, *PYTHON] if block.reason is None]


def runs_elsewhere(place: int) -> bool:
    """Whether a block's lines begin a longer one that is run, or are those of one before it."""
    text = RUN[place].text
    return any(other.text.startswith(text + "\n") for other in RUN) or text in [other.text for other in RUN[:place]]


RUN_ONCE = [block for place, block in enumerate(RUN) if not runs_elsewhere(place)]


@pytest.mark.parametrize("block", RUN_ONCE, ids=name)
def test_a_documented_command_runs(block: Block, workspace: Path) -> None:
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(workspace / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "XDG_CACHE_HOME": str(workspace / "cache"),
    }
    shell = ["bash", "-e", "-o", "pipefail", "-c", block.text]
    done = subprocess.run(
        shell if block.language == "sh" else [sys.executable, "-c", block.text],
        cwd=workspace, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "error:" not in done.stderr and "warning:" not in done.stderr, done.stderr
