"""A matcher beside somebody who teaches: it follows, as a whole, and what is broken leaves it as it was."""

from __future__ import annotations

import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tiny_bundle import write_clip

import m2df_runtime as m2df
from m2df_runtime.backends.model import Model


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Model:
    return m2df.load(tiny_bundle, backend="cpu", threads=1)


@pytest.fixture(params=["folder", "file"])
def support(request: pytest.FixtureRequest, support_dir: Path, model: Model, tmp_path: Path) -> m2df.Support:
    if request.param == "folder":
        return m2df.Support(support_dir, model)
    m2df.Support(support_dir, model).pack(tmp_path / "gate.bank")
    return m2df.Support(tmp_path / "gate.bank", model)


def test_what_is_taught_is_recognised_at_the_next_look(
    support: m2df.Support, model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    matcher = m2df.Matcher(model, m2df.SupportBank.of(model, support.path), reject="off")
    watch = m2df.SupportWatch(matcher, support.path)
    assert not watch.look()
    first = matcher.bank
    support.add("white", [write_clip(tmp_path / f"{seed}.mp4", "white", seed=seed) for seed in (1, 2)])
    query = write_clip(tmp_path / "query.mp4", "white", seed=3)
    assert matcher.predict(query).label != "white" and matcher.bank is first
    assert watch.look()
    assert matcher.predict(query).label == "white" and matcher.bank.calibration is not None
    watch.look()  # of a file, that its calibration was stored
    assert not watch.look()

    kept, good = matcher.bank, tmp_path / "good"
    support.path.rename(good)
    for _ in range(3):
        assert not watch.look()
    if support.is_file if support.path.exists() else good.is_file():
        support.path.write_bytes(good.read_bytes()[:-1])
        assert not watch.look()
        support.path.unlink()
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert matcher.bank is kept and matcher.predict(query).label == "white"
    assert warnings and all("going on with what was taught before" in line for line in warnings)
    assert len(warnings) == len(set(warnings))
    good.rename(support.path)
    support.remove("white")
    assert watch.look() and "white" not in matcher.bank.labels


def test_a_thread_looks_while_others_ask(support: m2df.Support, model: Model, tmp_path: Path) -> None:
    """No answer mixes two banks: each names exactly the classes of one of them."""
    matcher = m2df.Matcher(model, m2df.SupportBank.of(model, support.path))
    states = [{"red", "green", "blue"}, {"red", "green", "blue", "white"}, {"red", "green", "white"}]
    query = write_clip(tmp_path / "query.mp4", "white", seed=3)
    stop, seen = threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            seen.append({score.label for score in matcher.predict(query).classes})

    def wait_for(state: set[str]) -> None:
        while set(matcher.bank.labels) != state:
            assert not asking.done()

    with m2df.SupportWatch(matcher, support.path, every=0.01), ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            support.add("white", write_clip(tmp_path / "1.mp4", "white", seed=1))
            wait_for(states[1])
            support.remove("blue")
            wait_for(states[2])
        finally:
            stop.set()
        asking.result()
    assert all(labels in states for labels in seen)
    support.undo()
    assert set(matcher.bank.labels) == states[2]  # nobody looks any more


def test_a_stream_goes_on_with_what_was_taught(support_dir: Path, model: Model, tmp_path: Path) -> None:
    support = m2df.Support(support_dir, model)
    matcher = m2df.Matcher(model, m2df.SupportBank.of(model, support_dir), reject="off")
    watch = m2df.SupportWatch(matcher, support_dir)
    long = write_clip(tmp_path / "long.mp4", "white", seed=5, frames=100)
    labels = []
    for number, answer in enumerate(m2df.Stream(matcher, long, window=0.4, stride=0.1).windows()):
        labels.append(set(answer.scores))
        if number == 3:
            support.add("white", write_clip(tmp_path / "1.mp4", "white", seed=1))
            assert watch.look()
    assert labels[0] == {"red", "green", "blue"} and labels[-1] == {"red", "green", "blue", "white"}
    shutil.rmtree(support_dir / "white")
    assert watch.look() and "white" not in matcher.bank.labels
