"""The report on this machine."""

from __future__ import annotations

import json

from m2df_runtime.commands.doctor import Check, examine, verdict


def test_this_machine_can_run_on_the_cpu() -> None:
    checks = {check.name: check for check in examine()}
    assert checks["backend cpu"].status == "ok"
    assert "CPUExecutionProvider" in checks["backend cpu"].detail
    assert checks["decode"].status == "ok"
    assert verdict(list(checks.values())) == []


def test_everything_missing_says_what_to_do() -> None:
    for check in examine():
        assert check.detail
        if check.status in ("missing", "failed"):
            assert check.hint


def test_a_needed_thing_that_fails_is_the_verdict() -> None:
    checks = [Check("a", "failed", "x", needed=True), Check("b", "missing", "x"), Check("c", "ok", "x", needed=True)]
    assert verdict(checks) == ["a"]


def test_json_has_one_object_per_line_and_nothing_else(run_module) -> None:
    done = run_module("m2df_runtime.commands.doctor", "--json")
    assert done.returncode == 0
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"name", "status", "detail", "hint", "needed"} == set(records[0])
    assert {"python", "backend cpu", "backend cuda", "decode", "gpu"} <= {record["name"] for record in records}


def test_missing_engine_exits_with_3(run_module, tmp_path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not here')")
    done = run_module("m2df_runtime.commands.doctor", PYTHONPATH=str(tmp_path))
    assert done.returncode == 3
    assert "error: m2df cannot run here: backend cpu" in done.stderr
    assert "pip install 'm2df[cpu]'" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
