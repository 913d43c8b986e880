"""Teaching under kills and beside others: `make soak`, and a few of the kills in every run.

A verb is killed when it is about to do each of the things that it does to files, one after the other.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_bundle import write_clip

import m2df_runtime as m2df
from m2df_runtime.backends.model import Model

EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    opened = m2df.load(tiny_bundle, backend="cpu", threads=1)
    opened.prepare("visual", "text", "support", "query")
    return opened


@pytest.fixture
def pristine(support_dir: Path, model: Model, tmp_path: Path) -> Path:
    """A folder that was used and changed before, the same as a bank file, and clips to teach."""
    m2df.Support(support_dir, model).rename("blue", "sea")
    m2df.SupportBank.of(model, support_dir)
    m2df.Support(support_dir, model).pack(tmp_path / "support.bank")
    m2df.Support(tmp_path / "support.bank", model).remove("red/0.mp4")
    m2df.Support(support_dir, model).remove("red/0.mp4")
    for seed in (1, 2):
        write_clip(tmp_path / "clips" / f"{seed}.mp4", "white", seed=seed)
    write_clip(tmp_path / "more" / "wave" / "3.mp4", "white", seed=3)
    write_clip(tmp_path / "more" / "red" / "7.mp4", "red", seed=7)
    m2df.SupportBank.of(model, tmp_path / "more")
    return tmp_path


VERBS: dict[str, Callable[[m2df.Support, Path], object]] = {
    "remove a clip": lambda support, place: support.remove("green/0.mp4"),
    "add a class": lambda support, place: support.add("wave", sorted((place / "clips").iterdir())),
    "add to a class": lambda support, place: support.add("red", sorted((place / "clips").iterdir())),
    "background": lambda support, place: support.background(place / "clips" / "1.mp4"),
    "remove a class": lambda support, place: support.remove("green"),
    "rename": lambda support, place: support.rename("red", "crimson"),
    "join": lambda support, place: support.rename("red", "green", join=True),
    "merge": lambda support, place: support.merge(place / "more"),
    "undo": lambda support, place: support.undo(),
    "purge": lambda support, place: support.purge(),
}


def state(path: Path, model: Model) -> dict[str, list[str]]:
    """Classes with the contents of their clips, as a process that comes next finds them."""
    bank = m2df.SupportBank.of(model, path)
    found = {entry.label: sorted(clip.digest for clip in entry.clips) for entry in bank.classes}
    return {**found, "": sorted(clip.digest for clip in bank.background)}


def killed_at(number: int, path: Path, verb: Callable[[], object]) -> bool:
    """Whether a child that does this is killed at the n-th thing that it is about to do to files below a path."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal seen
            if event in EVENTS and str(path) in " ".join(map(str, arguments[:2])):
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(hook)
            verb()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def kill_everywhere(verb: str, kind: str, pristine: Path, model: Model) -> None:
    work = pristine / "work"
    target = work / ("support" if kind == "folder" else "support.bank")

    def fresh() -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        if kind == "folder":
            shutil.copytree(pristine / "support", target)
        else:
            shutil.copy(pristine / "support.bank", target)

    def do() -> object:
        return VERBS[verb](m2df.Support(target, model), pristine)

    fresh()
    old = state(target, model)
    do()
    new = state(target, model)
    found, number = [], 0
    while True:
        fresh()
        number += 1
        if not killed_at(number, work, do):
            break
        found.append(state(target, model))
        assert found[-1] in (old, new), f"killed at {number}"
        again = m2df.Support(target, model)
        again.add("after", write_clip(work / "after.mp4", "blue", seed=40))
        assert state(target, model) == {**found[-1], "after": state(target, model)["after"]}
        again.undo()
        assert state(target, model) == found[-1]
        left = [path.name for path in (*work.iterdir(), *(target / ".m2df").glob("*")) if "tmp" in path.name]
        assert left == []
    assert number > 3 and found[0] == old
    assert old == new or new in found or kind == "file"  # of a file, its renaming is the last thing
    assert state(target, model) == new


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_removal_killed_anywhere_was_made_or_not(kind: str, pristine: Path, model: Model) -> None:
    kill_everywhere("remove a clip", kind, pristine, model)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["folder", "file"])
@pytest.mark.parametrize("verb", list(VERBS)[1:])
def test_every_verb_killed_anywhere_was_made_or_not(verb: str, kind: str, pristine: Path, model: Model) -> None:
    kill_everywhere(verb, kind, pristine, model)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_two_writers_lose_nothing_in_twenty_rounds(kind: str, pristine: Path, tiny_bundle: Path, model: Model) -> None:
    from test_teaching import together

    support = pristine / ("support" if kind == "folder" else "support.bank")
    together(support, tiny_bundle, pristine / "writers", 20, clips_before=5)
