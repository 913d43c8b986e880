from __future__ import annotations

import pytest

from m2df_runtime.commands import console


def test_the_time_left_of_a_run_that_goes_on_counts_only_its_own_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.stages("towers", 400) as advance:
        for moment, steps in ((12.0, 201), (112.0, 10), (212.0, 10)):  # 200 are an earlier run's; 10 seconds a step
            now = moment
            advance(steps)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[-3:] for line in lines] == [["1890", "s", "left"], ["1790", "s", "left"]]
