"""What must be in place before minutes of work: the packages of the extra, and a file that can be written."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

from m2df_runtime.errors import EnvironmentMissing, InputError

PACKAGES = {"torch": "torch", "sklearn": "scikit-learn", "matplotlib": "matplotlib", "jinja2": "jinja2"}


def check_report(path: Path) -> None:
    """Refuse a report that could not be made or written.

    Raises:
        EnvironmentMissing: A package of the extra `report` is not installed.
        InputError: The file cannot be written where it is asked for.
    """
    missing = [name for module, name in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise EnvironmentMissing(f"--report needs {', '.join(missing)}", "pip install 'm2df[report]'")
    if path.is_dir():
        raise InputError(f"{path}: a directory, the report is a file", f"--report {path / 'report.html'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}", "name another file for --report") from None
