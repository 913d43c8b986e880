"""Filmstrip of a prediction: the query's frames above those of the most similar support clip."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from m2df_runtime.files import atomic_write
from m2df_runtime.pixels.thumbnails import to_look_at

if TYPE_CHECKING:
    from m2df_runtime.match.results import Prediction
    from m2df_runtime.pixels.spec import ClipSpec

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FRAME = 112  # side of a shown frame in pixels; 8 of them make a strip that fits a page
MAX_STRIP = 1600
MARGIN, GAP, ROW_TITLE, BAR_HEIGHT = 20, 4, 22, 20
BARS = 5

BACKGROUND, INK, FAINT, TRACK = (255, 255, 255), (24, 28, 36), (112, 120, 134), (233, 236, 241)
ACCENT, OTHER, REJECTED = (33, 102, 204), (156, 178, 212), (200, 72, 56)

# Pillow's own font knows Latin only. These are looked up by name among the system's fonts, for other scripts.
SCRIPT_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "Arial Unicode.ttf",
    "msgothic.ttc",
)


def display_spec(spec: ClipSpec) -> ClipSpec:
    """The bundle's sampling and region with frames in natural colours at the size of the filmstrip."""
    return to_look_at(spec, max(16, min(FRAME, (MAX_STRIP - 2 * MARGIN) // spec.frames - GAP)))


def filmstrip(
    query: NDArray[np.uint8], match: NDArray[np.uint8], prediction: Prediction, match_name: str = ""
) -> Image.Image:
    """Draw a prediction.

    Args:
        query: The query's frames, uint8 [T, H, W, 3] RGB.
        match: Frames of the support clip shown below, the same shape.
        prediction: Names the query, the class, its probability and the next best classes.
        match_name: Title of the lower row.

    Returns:
        RGB image.
    """
    frames, height, width = query.shape[:3]
    strip = frames * (width + GAP) - GAP
    page = max(strip, 560) + 2 * MARGIN
    bars = min(BARS, len(prediction.classes))
    header = max(76, bars * BAR_HEIGHT) + 16
    image = Image.new("RGB", (page, 2 * MARGIN + header + 2 * (ROW_TITLE + height) + GAP * 2), BACKGROUND)
    draw = ImageDraw.Draw(image)
    _header(draw, prediction, page)
    _bars(draw, prediction, page)
    top = MARGIN + header
    for title, clip in (("query", query), (f"most similar support clip: {match_name}", match)):
        write_text(draw, (MARGIN, top), title, 12, FAINT, strip)
        for t in range(frames):
            image.paste(Image.fromarray(clip[t]), (MARGIN + t * (width + GAP), top + ROW_TITLE))
        top += ROW_TITLE + height + GAP * 2
    return image


def save_picture(path: Path, image: Image.Image) -> None:
    """Write the image as PNG, atomically. Raises OSError where the place cannot be written."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    atomic_write(path, buffer.getvalue())


def _header(draw: ImageDraw.ImageDraw, prediction: Prediction, page: int) -> None:
    width = page // 2 - 2 * MARGIN
    write_text(draw, (MARGIN, MARGIN - 2), Path(prediction.query).name, 13, FAINT, width)
    write_text(draw, (MARGIN, MARGIN + 16), prediction.answer, 28, REJECTED if prediction.rejected else INK, width)
    write_text(draw, (MARGIN, MARGIN + 52), f"{prediction.probability:.1%}", 16, FAINT, width)


def _bars(draw: ImageDraw.ImageDraw, prediction: Prediction, page: int) -> None:
    """The most probable classes as bars, right of the header."""
    left, right = page // 2, page - MARGIN
    bar_left, bar_right = left + (right - left) * 2 // 5, right - 52
    for rank, score in enumerate(prediction.classes[:BARS]):
        y = MARGIN + rank * BAR_HEIGHT
        colour = OTHER if rank else REJECTED if prediction.rejected else ACCENT
        write_text(draw, (left, y), score.label, 12, INK if rank == 0 else FAINT, bar_left - left - 8)
        draw.rounded_rectangle((bar_left, y + 3, bar_right, y + 13), 3, TRACK)
        length = round((bar_right - bar_left) * score.probability)
        if length >= 2:
            draw.rounded_rectangle((bar_left, y + 3, bar_left + length, y + 13), min(3, length // 2), colour)
        write_text(draw, (bar_right + 8, y), f"{score.probability:.1%}", 12, FAINT, 52)


def write_text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: tuple[int, int, int], width: int
) -> None:
    """Draw one line of text, shortened with dots where it is wider than `width` pixels."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    font = _font(text, size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        text = text.encode("latin-1", "replace").decode("latin-1")  # the bitmap font fails on anything else
    if draw.textlength(text, font) > width:
        kept = text
        while kept and draw.textlength(kept + "...", font) > width:
            kept = kept[:-1]
        text = kept.rstrip() + "..."
    draw.text(at, text, colour, font)


def _font(text: str, size: int) -> Font:
    if not text.isascii() and any(ord(char) > 0x24F for char in text):
        for name in SCRIPT_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except (OSError, ImportError):
                continue
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # Pillow before 10.1, or built without FreeType
        return ImageFont.load_default()
