"""Children that crash, and what they leave behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

from m2df_export.check.process import run_module, scratch


def test_crash_is_a_result_and_its_folder_goes_with_the_next(tmp_path, monkeypatch):
    code = "import os, signal\nfrom m2df_export.check.process import scratch\n"
    code += "with scratch() as folder:\n    (folder / 'half').touch()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    (tmp_path / "crashing.py").write_text(code)
    (tmp_path / "failing.py").write_text("import sys\nsys.exit('first\\nerror: no such thing')\n")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)  # what it found before
    ended = run_module("crashing")
    assert (ended.code, ended.failure) == (-9, "crashes (SIGKILL)")
    (left,) = temporary.iterdir()
    assert (left / "half").exists()
    with scratch() as folder:
        assert list(temporary.iterdir()) == [folder]
        assert folder.parent == Path(temporary)
    assert list(temporary.iterdir()) == []
    assert run_module("failing").failure == "fails: no such thing"
