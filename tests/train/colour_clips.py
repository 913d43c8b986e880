"""Clips of one colour each, by several people: whatever looks at colours tells the classes apart."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "dark blue": (0, 0, 200)}


def write_colour_clip(path: Path, colour: tuple[int, int, int], frames: int = 12) -> None:
    """A video of one colour with a white line that moves down."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (48, 32))
    for number in range(frames):
        frame = np.full((32, 48, 3), colour[::-1], np.uint8)
        frame[number % 32] = 255
        writer.write(frame)
    writer.release()


def write_colour_folder(folder: Path) -> Path:
    """Three classes, two clips by each of three people, and one clip that is none."""
    for name, colour in COLOURS.items():
        for person in ("anna", "ben", "carl"):
            for take in (1, 2):
                write_colour_clip(folder / name / f"{person}_{take}.avi", colour)
    (folder / "red" / "dora_1.avi").write_bytes(b"not a video")
    return folder
