"""Parts of a camera's picture that are watched by themselves: in pixels, or in fractions, which fit every size."""

from __future__ import annotations

import math
from collections.abc import Sequence

from m2df_runtime.clips.source import Rectangle
from m2df_runtime.errors import InputError, printable

Zone = tuple[float, float, float, float]
"""x, y, width, height of the upright picture: fractions of its sides where none is above 1, else pixels."""


def checked_zone(name: str, numbers: Sequence[float]) -> Zone:
    """A zone as it was given.

    Raises:
        InputError: Not four numbers, or no part of any picture.
    """
    shown = printable(f"zone {name}: {', '.join(f'{number:g}' for number in numbers)}")
    if len(numbers) != 4:
        raise InputError(f"{shown} are not four numbers", "give x, y, width, height")
    x, y, width, height = numbers
    if not all(math.isfinite(number) for number in numbers) or min(x, y) < 0 or min(width, height) <= 0:
        raise InputError(f"{shown} is no part of a picture", "x and y are from 0 up, width and height above 0")
    if max(numbers) > 1 and any(number != round(number) for number in numbers):
        raise InputError(f"{shown} are neither pixels nor fractions", "give whole pixels, or fractions up to 1")
    if max(numbers) <= 1 and (x >= 1 or y >= 1):
        raise InputError(f"{shown} lies outside the picture", "the far edges are at 1")
    return x, y, width, height


def zone_name(camera: str, zone: str | None) -> str:
    """How messages call a camera, or a part of its picture."""
    return camera if zone is None else f"{camera}, {zone}"


def rectangle(zone: Zone, width: int, height: int) -> Rectangle:
    """The pixels of a zone in a picture of a width and a height; it may lie outside where it is in pixels."""
    if max(zone) > 1:
        x, y, across, down = (round(number) for number in zone)
        return x, y, across, down
    left, top = min(width - 1, math.floor(zone[0] * width)), min(height - 1, math.floor(zone[1] * height))
    right, bottom = min(width, round((zone[0] + zone[2]) * width)), min(height, round((zone[1] + zone[3]) * height))
    return left, top, max(1, right - left), max(1, bottom - top)
