"""Mistakes in a bank, made with real files: each is found, named, and comes with something to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from tiny_bundle import write_clip

from m2df_runtime.backends.model import Model
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bank.lint import Finding, lint
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.prompt_texts import LabelRules


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return Model(Bundle.open(tiny_bundle), backend="cpu", threads=1)


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of each colour, at heights that are near to each other and not the same."""
    folder = tmp_path_factory.mktemp("lint")
    for colour in ("red", "green", "blue", "white"):
        for number, top in enumerate((12, 15, 18)):
            write_clip(folder / colour / f"{number}.mp4", colour, seed=seed_of(colour, top))
    return folder


def seed_of(colour: str, top: int) -> int:
    """The seed with which `write_clip` draws the square at this height of 48."""
    return next(s for s in range(10_000) if np.random.default_rng([s, *colour.encode()]).integers(0, 32) == top)


@pytest.fixture
def folder(master: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(master, tmp_path / "support"))


def found(folder: Path, model: Model, *rules: LabelRules) -> list[Finding]:
    return list(lint(SupportBank.of(model, folder, *rules)))


def of_kind(findings: list[Finding], kind: str) -> list[tuple[str, ...]]:
    return [finding.about for finding in findings if finding.kind == kind]


def written_anew(path: Path, target: Path) -> Path:
    """The same pictures through another codec at another rate of bits."""
    target.parent.mkdir(exist_ok=True)
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)]
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return target


def test_a_clean_bank_has_no_findings(folder: Path, model: Model) -> None:
    assert found(folder, model) == []


def test_swapped_labels_are_named_with_what_the_clips_look_like(folder: Path, model: Model) -> None:
    (folder / "red" / "0.mp4").rename(folder / "blue" / "9.mp4")
    findings = found(folder, model)
    assert of_kind(findings, "mislabelled") == [("blue/9.mp4",)]
    (finding,) = [one for one in findings if one.kind == "mislabelled"]
    assert "looks like 'red'" in finding.problem and "move it to 'red'" in finding.advice
    assert finding.text().startswith("blue/9.mp4: looks like 'red'; look at it: move it")
    assert json.loads(json.dumps(finding.record()))["about"] == ["blue/9.mp4"]


@pytest.mark.parametrize("target", ["red", "green", "_background"])
def test_a_clip_encoded_anew_under_another_name_is_found_wherever_it_is(
    folder: Path, model: Model, target: str
) -> None:
    written_anew(folder / "red" / "0.mp4", folder / target / "other name.avi")
    (pair,) = of_kind(found(folder, model), "twice")
    assert set(pair) == {"red/0.mp4", f"{target}/other name.avi"}


def test_one_action_under_two_names_is_found_by_its_clips(folder: Path, model: Model) -> None:
    for number, top in enumerate((19, 16, 13)):
        write_clip(folder / "crimson" / f"{number}.mp4", "red", seed=seed_of("red", top))
    (finding,) = [one for one in found(folder, model) if one.kind == "alike"]
    assert finding.about == ("crimson", "red") and "merge them" in finding.advice


def test_and_by_its_text(folder: Path, model: Model) -> None:
    assert of_kind(found(folder, model, LabelRules(texts={"white": "Green"})), "same text") == [("green", "white")]


def test_a_class_in_which_nothing_moves_is_found(folder: Path, model: Model) -> None:
    picture = np.full((48, 64, 3), 60, np.uint8)
    for number in range(2):
        path = folder / "nothing" / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(12 + number):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture + 20 * number, format="rgb24")))
            container.mux(stream.encode())
    (finding,) = [one for one in found(folder, model) if one.kind == "still"]
    assert finding.about == ("nothing",) and "background" in finding.advice


def test_a_background_that_holds_an_action_is_found(folder: Path, model: Model) -> None:
    write_clip(folder / "_background" / "a.mp4", "red", seed=seed_of("red", 16))
    bank = SupportBank.of(model, folder)
    assert len(bank.background) == 1
    (finding,) = [one for one in lint(bank) if one.kind == "background"]
    assert finding.about == ("_background/a.mp4",) and "teach it as 'red'" in finding.advice


def test_classes_of_one_clip_are_named_together(folder: Path, model: Model) -> None:
    for label in ("red", "blue"):
        for number in (1, 2):
            (folder / label / f"{number}.mp4").unlink()
    (finding,) = [one for one in found(folder, model) if one.kind == "uncalibrated"]
    assert finding.about == ("blue", "red") and finding.advice == "teach a second clip"
    shutil.rmtree(folder / "green")
    shutil.rmtree(folder / "white")
    assert [one.kind for one in found(folder, model)] == ["uncalibrated"]


def test_the_verb_prints_findings(command, folder: Path, tiny_bundle: Path) -> None:
    common = ("bank", "lint", "--bundle", tiny_bundle, "--support", folder)
    clean = command(*common)
    assert (clean.returncode, clean.stdout) == (0, "nothing looks wrong in 12 clips of 4 classes\n"), clean.stderr
    assert command(*common, "--json").stdout == ""
    (folder / "red" / "0.mp4").rename(folder / "blue" / "9.mp4")
    (line,) = command(*common, "--json").stdout.splitlines()
    assert list(json.loads(line)) == ["kind", "about", "problem", "advice"]
    assert command(*common).stdout.startswith("mislabelled: blue/9.mp4: looks like 'red'; ")
