"""Colours of the page can be read: the contrast that WCAG 2.1 asks for at level AA, in light and in dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import m2df_runtime

STYLE = (Path(m2df_runtime.__file__).parent / "serve" / "page" / "style.css").read_text(encoding="utf-8")
LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", part))
    for part in re.findall(r":root \{(.*?)\n *\}", STYLE, re.DOTALL)
)
TEXT = [("ink", "paper"), ("ink", "card"), ("soft", "paper"), ("soft", "card"), ("accent", "paper"), ("accent", "card")]
ON_COLOUR = [("on-accent", "accent"), ("ink", "tint"), ("ink", "bar"), ("paper", "ink")]
LINES = [("edge", "paper"), ("edge", "card"), ("accent", "paper")]


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour, as WCAG 2.1 defines it."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the standard's well-known near miss


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out(scheme):
    colours = LIGHT if scheme == "light" else {**LIGHT, **DARK}
    faint = {
        f"{front} on {back}": round(contrast(colours[front], colours[back]), 2)
        for pairs, least in ((TEXT + ON_COLOUR, 4.5), (LINES, 3.0))
        for front, back in pairs
        if contrast(colours[front], colours[back]) < least
    }
    assert faint == {}
