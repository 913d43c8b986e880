"""The server's log: one JSON object a line on standard error, for whoever collects them."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback

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
        try:
            print(json.dumps(line), file=sys.stderr, flush=True)
        except (OSError, ValueError):  # nobody reads it any more
            return


def log_json_lines() -> None:
    """Let this process log so, and nothing else."""
    logging.root.handlers = [JsonLines(logging.INFO)]
    for name in ("m2df_runtime.serve", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO if name != "uvicorn" else logging.WARNING)
