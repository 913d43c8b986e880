"""The server's log on standard error: one JSON object a line for whoever collects them, plain lines on a terminal."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from contextlib import suppress

from m2df_runtime.errors import printable, shortened

_LONGEST = 2000


class JsonLines(logging.Handler):
    """Writes what is logged as `{"time", "level", "logger", "message", …}`."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
        line: dict[str, object] = {
            "time": moment,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": shortened(printable(record.getMessage()), _LONGEST),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1]:
            line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))[-4 * _LONGEST :]
        with suppress(OSError, ValueError):  # nobody reads it any more
            print(json.dumps(line), file=sys.stderr, flush=True)


class PlainLines(logging.Handler):
    """Writes the time and what is logged, for people."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler.emit`."""
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = getattr(record, "fields", {})
        words = [f"{value} ms" if name == "ms" else f"{value}" for name, value in fields.items() if value is not None]
        what = " ".join(words) if words else f"{record.levelname.lower()}: {record.getMessage()}"
        lines = [f"{moment} {shortened(printable(what), _LONGEST)}\n"]
        if record.exc_info and record.exc_info[1]:
            lines += traceback.format_exception(record.exc_info[1])
        with suppress(OSError, ValueError):  # nobody reads it any more
            print("".join(lines), end="", file=sys.stderr, flush=True)


def log_lines() -> None:
    """Let this process log so, and nothing else."""
    logging.root.handlers = [PlainLines(logging.INFO) if sys.stderr.isatty() else JsonLines(logging.INFO)]
    for name in ("m2df_runtime.serve", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO if name != "uvicorn" else logging.WARNING)
