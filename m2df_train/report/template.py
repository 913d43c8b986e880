"""What the templates of reports share: the environment that fills them, and how numbers and names are written."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape


def environment() -> Environment:
    """Templates of this folder; what they show is escaped, and a value that is missing is an error."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "minus": minus,
        "signed": lambda value: minus(value, "%+.1f"),
        "breakable": breakable,
    }
    return made


def minus(value: float, form: str) -> str:
    """A number with a minus sign as wide as a plus; what rounds to zero has none."""
    text = form % value
    return (text.lstrip("+-") if float(text) == 0 else text).replace("-", "\N{MINUS SIGN}")


def breakable(text: str) -> Markup:
    """A name that may be broken after `_`, `/` and `.`, so that it fits a narrow column."""
    return Markup(re.sub(r"([_/.])", r"\1<wbr>", str(escape(text))))
