"""Folder names, labels.csv and prompt templates."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2df_runtime.errors import InputError
from m2df_runtime.labels import LabelRules, read_labels, text_from_folder


@pytest.mark.parametrize(
    ("folder", "text"),
    [
        ("hand_waving", "hand waving"),
        ("hand-waving", "hand waving"),
        ("HandWaving", "hand waving"),
        ("handWaving", "hand waving"),
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("CPRTraining", "CPR training"),
        ("TaiChi", "tai chi"),
        ("jump", "jump"),
        ("Fencing", "Fencing"),
        ("USA", "USA"),
        ("__a__b--c", "a b c"),
        ("two  words", "two words"),
        ("跳ぶ", "跳ぶ"),
        ("éclair_élan", "éclair élan"),
        ("walk2run", "walk2run"),
        ("___", "___"),
    ],
)
def test_text_from_folder(folder: str, text: str) -> None:
    assert text_from_folder(folder) == text


def test_labels_file_replaces_the_rule_for_its_classes(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text('\ufeffid, class ,text\n1,jump,"jumping, high"\n2,走る,running\n', encoding="utf-8")
    rules = LabelRules("a clip of {}.", read_labels(path))
    assert rules.prompt("jump") == "a clip of jumping, high."
    assert rules.prompt("走る") == "a clip of running."
    assert rules.prompt("hand_waving") == "a clip of hand waving."


def test_cells_may_hold_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes('class,text\r\njump,"jumping\nhigh\u2028up"\r\nrun,running\r\n'.encode())
    assert read_labels(path) == {"jump": "jumping high up", "run": "running"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("class,label\na,b\n", "no column text"),
        ("", "no column class and text"),
        ("class,text\n", "no rows"),
        ("class,text\njump,\n", "line 2: empty text"),
        ("class,text\n,jump\n", "line 2: empty class"),
        ("class,text\njump,a\njump,b\n", "line 3: class 'jump' has two texts"),
        ("class,text\njump\n", "line 2: empty text"),
    ],
)
def test_bad_labels_file_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_labels(path)
    assert str(path) in caught.value.message


def test_labels_file_that_is_missing_or_binary_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_labels(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a UTF-8 CSV file"):
        read_labels(tmp_path / "binary.csv")


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{0}", "{name} {}", "{} {", "{{}}"])
def test_template_needs_exactly_one_place(template: str) -> None:
    with pytest.raises(InputError, match="exactly one"):
        LabelRules(template)
