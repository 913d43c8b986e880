"""Python as users write it: the public names, the examples in their docstrings, and the page that tells of them."""

from __future__ import annotations

import doctest
import importlib
import re
import shutil
from pathlib import Path

import pytest

import m2df_runtime as m2df
from m2df_runtime.bundle.shipped import demo_queries, demo_support

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture(scope="module")
def actions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of actions that has been used before, so that its bank lies beside the clips."""
    folder = tmp_path_factory.mktemp("used") / "actions"
    shutil.copytree(demo_support(), folder)
    m2df.SupportBank.of(m2df.load(), folder)
    return folder


@pytest.fixture
def user(actions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user works: a folder of actions, a clip to classify, two clips of another action."""
    shutil.copytree(actions, tmp_path / "actions")
    for name, query in (("clip", "clap"), ("a", "golf_swing"), ("b", "side_bend")):
        shutil.copy(demo_queries() / f"{query}.mp4", tmp_path / f"{name}.mp4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_public_names_are_what_they_say() -> None:
    assert sorted(m2df._HOMES) == sorted(m2df.__all__)
    for name in m2df.__all__:
        assert getattr(m2df, name).__name__ == name
        assert getattr(m2df, name).__doc__
    assert {*m2df.__all__, "__version__"} <= {*dir(m2df)}
    with pytest.raises(AttributeError, match="no attribute 'Sesion'"):
        _ = m2df.Sesion


@pytest.mark.parametrize(
    "module",
    [
        "m2df_runtime",
        *sorted({f"m2df_runtime.{home}" for home in m2df._HOMES.values()}),
        "m2df_runtime.sinks.metrics",
        "m2df_runtime.sinks.webhook",
    ],
)
def test_examples_in_docstrings_run(module: str, user: Path) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.failed == 0


def test_every_public_class_and_verb_has_an_example() -> None:
    used = (m2df.load, m2df.SupportBank, m2df.SupportBank.add, m2df.SupportBank.save, m2df.LabelRules, m2df.FrameSource)
    for thing in (
        *used,
        m2df.Support,
        m2df.SupportWatch,
        m2df.Matcher,
        m2df.Matcher.predict,
        m2df.Matcher.swap,
        m2df.Prediction,
        m2df.ClipError,
    ):
        assert ">>> " in thing.__doc__, thing


def test_the_page_runs_from_top_to_bottom(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{PAGE}, block {number}", "exec"), names)
    assert capsys.readouterr().out.splitlines()[0].startswith("clap 0.")
