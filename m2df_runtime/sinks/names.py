"""Names of cameras and actions as parts of a file's name or of an MQTT topic."""

from __future__ import annotations

import hashlib
import re

_UNFIT = re.compile(r"[^\w.-]+")
_LONGEST = 60  # bytes: a file's name holds 255, and four such parts
_DIGEST = 8  # of them, where a name is cut: cameras' addresses differ in their last characters


def fit(text: str) -> str:
    """The text with one `_` for what is no letter, digit, dot, hyphen or `_`; of long ones the beginning and a hash."""
    name = _UNFIT.sub("_", text).strip("._") or "_"
    encoded = name.encode()
    if len(encoded) <= _LONGEST:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{encoded[: _LONGEST - _DIGEST - 1].decode(errors='ignore')}-{digest}"
