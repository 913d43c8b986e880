"""Folder names, labels.csv and prompt templates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from m2df_runtime.bundle.prompt_texts import (
    LabelRules,
    prompt_embeddings,
    read_labels,
    text_from_folder,
    warn_unmatched,
)
from m2df_runtime.errors import InputError
from m2df_train.data.clips import chosen_classes


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
    assert rules.prompts("jump") == ("a clip of jumping, high.",)
    assert rules.prompts("走る") == ("a clip of running.",)
    assert rules.prompts("hand_waving") == ("a clip of hand waving.",)


def test_several_rows_of_a_class_are_a_set_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("class,text\njump,leaping\nrun,running\njump,jumping\njump,leaping\n", encoding="utf-8")
    rules = LabelRules("a clip of {}", read_labels(path))
    assert rules.prompts("jump") == ("a clip of leaping", "a clip of jumping")
    lengths = {"a clip of leaping": [1.0, 0.0], "a clip of jumping": [0.0, 3.0], "a clip of running": [5.0, 5.0]}
    calls: list[list[str]] = []

    def encode(texts: Sequence[str]) -> np.ndarray:
        calls.append(list(texts))
        return np.array([lengths[text] for text in texts], np.float32)

    found = prompt_embeddings([rules.prompts("jump"), rules.prompts("run"), rules.prompts("jump")], encode)
    np.testing.assert_array_equal(found, [[0.5, 1.5], [5.0, 5.0], [0.5, 1.5]])
    assert calls == [sorted(lengths, key=list(lengths).index)]


def test_cells_may_hold_line_breaks(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes('class,text\r\njump,"jumping\nhigh\u2028up"\r\nrun,running\r\n'.encode())
    assert read_labels(path) == {"jump": ("jumping high up",), "run": ("running",)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("class,label\na,b\n", "no column text"),
        ("", "no column class and text"),
        ("class,text\n", "no rows"),
        ("class,text\njump,\n", "line 2: empty text"),
        ("class,text\n,jump\n", "line 2: empty class"),
        ("class,text\n" + "".join(f"jump,{n}\n" for n in range(33)), "line 34: class 'jump' has more than 32 texts"),
        ("class,text\njump\n", "line 2: empty text"),
        ("class,text\njump," + "&amp;" * 250, "line 2: a text of 1250 characters, at most 1000 are allowed"),
        ("class,text\n" + "j" * 1001 + ",a", "line 2: a class of 1001 characters, at most 1000 are allowed"),
    ],
)
def test_bad_labels_file_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_labels(path)
    assert str(path) in caught.value.message


def test_labels_file_that_is_missing_or_binary_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_labels(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a UTF-8 CSV file"):
        read_labels(tmp_path / "binary.csv")


def test_labels_file_that_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.csv")
    for path, kind in ((tmp_path / "labels.csv", "a pipe"), (Path("/dev/zero"), "a device"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=f"{path}: {kind}, not a file"):
            read_labels(path)


def test_names_are_compared_in_one_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = "saluer \u00e9", "saluer e\u0301"
    path = tmp_path / "labels.csv"
    for written, folder in ((composed, decomposed), (decomposed, composed)):
        path.write_text(f"class,text\n{written},waving\n", encoding="utf-8")
        assert LabelRules(texts=read_labels(path)).descriptions(folder) == ("waving",)
        rules = LabelRules(texts={written: "of the bundle", **read_labels(path)})
        assert rules.descriptions(folder) == rules.descriptions(written) == ("waving",)
        assert chosen_classes(["a", folder], [written], "data") == [folder]


def test_labels_without_a_row_for_any_class_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = {"foo": "bar", "\u00e9": "qux"}
    warn_unmatched(tmp_path / "l.csv", labels, ["run", "e\u0301"])
    assert not caplog.records
    warn_unmatched(tmp_path / "l.csv", labels, ["run", "walk", "run"])
    assert caplog.messages == [
        f"{tmp_path / 'l.csv'}: no row is of a class, the folders' names are used; "
        "its rows: foo, \u00e9; the classes: run, walk"
    ]


def test_a_template_is_bounded() -> None:
    with pytest.raises(InputError, match="a prompt of 80002 characters, at most 1000"):
        LabelRules("x" * 80000 + "{}")


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{0}", "{name} {}", "{} {", "{{}}"])
def test_template_needs_exactly_one_place(template: str) -> None:
    with pytest.raises(InputError, match="exactly one"):
        LabelRules(template)
