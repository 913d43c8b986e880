"""Where every command begins: streams that are closed become empty ones, and Ctrl-C ends it with one word.

A few lines and no import of ours, because modules load for up to five seconds, and an interrupt in the middle of that
is met by whatever library is loading: one shows a traceback, another takes it for a package that is missing.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130  # 128 + SIGINT, what shells report for Ctrl-C

_interrupted = False
_cleaning_up = False  # whether an exception at this moment would find someone who tidies up


def enter(module: str) -> NoReturn:
    """Load a command's module and run its `cli`; exits with its code."""
    prepare()
    command = importlib.import_module(module).cli
    from m2df_runtime.commands.console import main_entry

    main_entry(command)


def run() -> NoReturn:
    """Entry point of `m2df-run`."""
    enter("m2df_runtime.commands.run")


def doctor() -> NoReturn:
    """Entry point of `m2df-doctor`."""
    enter("m2df_runtime.commands.doctor")


def prepare() -> None:
    """Replace closed streams and take over Ctrl-C, unless it is ignored (a job in the background). Idempotent."""
    _open_streams()
    # Else pydantic reads what every installed package says of itself, to find plugins that a command has no use for.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _unraisable


def interrupted() -> bool:
    """Whether Ctrl-C was pressed: what is raised after it is its consequence, whatever it says."""
    return _interrupted


def cleans_up(working: bool) -> None:
    """Say whether Ctrl-C raises KeyboardInterrupt (while a command works) or ends the process where it is."""
    global _cleaning_up
    _cleaning_up = working


def _open_streams() -> None:
    """Put an empty file where standard input, output or error is closed.

    Else the next file that is opened, such as a bank that is being written, takes its number and with it
    whatever a library writes to the stream.
    """
    for name, flags in (("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, flags)  # the lowest free number, which is the stream's
            os.set_inheritable(handle, True)
            mode = "r" if flags == os.O_RDONLY else "w"
            setattr(sys, name, os.fdopen(handle, mode, encoding="utf-8", closefd=False))


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted
    again, _interrupted = _interrupted, True
    if again or not _cleaning_up or _importing(frame):
        _leave()
    raise KeyboardInterrupt


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is loading; libraries catch everything there and go on without what they failed to load."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """An interrupt that fell into a destructor would be printed and forgotten."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _leave()
    sys.__unraisablehook__(unraisable)


def _leave() -> NoReturn:
    """End the process at once, with the terminal's cursor as it was: a progress bar hides it."""
    try:
        os.write(2, (b"\x1b[?25h" if os.isatty(2) else b"") + b"error: interrupted\n")
    finally:
        os._exit(INTERRUPTED)
