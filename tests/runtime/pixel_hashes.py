"""SHA-256 of the pixels that `load_clip` makes of a few clips: the table that holds `PIXELS_VERSION` to its word.

After a change that makes other pixels: raise `PIXELS_VERSION` in m2df_runtime/pixels/load.py by one, then

    python -m tests.runtime.pixel_hashes            # from the project's root; commit the table it writes
    python -m tests.runtime.pixel_hashes --unreleased   # the version was raised since the last release already

The coded clips are committed, because encoders of other versions or processors write other files. OpenCV at its
baseline and NumPy without AVX2 change no hash, nor does FFmpeg with SSE 4 alone; its colour conversion rounds otherwise
in plain C and so on other processors than x86-64, where coded clips are left out.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import ArraySource, FrameSource
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.spec import PIXELS_VERSION, ClipSpec

TABLE = Path(__file__).parents[1] / "golden" / "pixels.json"
CLIPS = TABLE.parent / "pixels"

# Coded clip: encoder, frames per second or stamps in ms, rotation, pixel aspect.
CODED: dict[str, tuple[str, Fraction | None, int, Fraction | None]] = {
    "h264.mp4": ("libx264", Fraction(25), 0, None),
    "rotated.mp4": ("libx264", Fraction(25), 90, None),
    "wide_pixels.mp4": ("libx264", Fraction(25), 0, Fraction(2)),
    "variable_rate.mkv": ("libx264", None, 0, None),
    "large.mp4": ("libx264", Fraction(25), 0, None),
    "b_frames.avi": ("mpeg4", Fraction(25), 0, None),
}
STAMPS = [0, 40, 80, 400, 440, 480, 520, 900, 940, 980, 1020, 1060, 1500, 1540, 1580, 1620]

SPECS = {
    "bicubic": ClipSpec(frames=4, size=32),
    "squash": ClipSpec(frames=3, size=32, resize="squash", interpolation="bilinear"),
    "tensor": ClipSpec(frames=3, size=32, short_side=40, interpolation="bilinear", antialias=False),
    "center": ClipSpec(frames=3, size=32, short_side=40, sampler="segment_center"),
    "linspace": ClipSpec(frames=3, size=32, sampler="linspace"),
    "dense": ClipSpec(frames=3, size=32, sampler="dense_clip"),
    "region": ClipSpec(frames=4, size=32, region="motion"),
    "channels": ClipSpec(frames=4, size=32, channels="motion"),
    "region-channels": ClipSpec(frames=4, size=32, region="motion", channels="motion"),
    "region-tensor": ClipSpec(frames=3, size=32, region="motion", interpolation="bilinear", antialias=False),
}


def scene(count: int = 16, width: int = 96, height: int = 72, shake: bool = False) -> NDArray[np.uint8]:
    """A textured square that crosses a textured ground, with a camera that shakes or stands: [n, H, W, 3]."""
    rng = np.random.Generator(np.random.PCG64(5))
    ground = rng.integers(40, 200, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    side = height // 3
    figure = rng.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    frames = np.empty((count, height, width, 3), dtype=np.uint8)
    for t in range(count):
        dy, dx = (t * 3 % 5, t * 2 % 7) if shake else (0, 0)
        frames[t] = ground[dy : dy + height, dx : dx + width]
        left, top = (width - side) * t // (count - 1), height // 4 + 2 * (t % 4)
        frames[t, top : top + len(figure), left : left + len(figure)] = figure
    return frames


def sources(folder: Path) -> Iterator[tuple[str, FrameSource]]:
    """Name and clip of every input; pictures are written to a folder."""
    yield "array", ArraySource(scene())
    yield "large shaking array", ArraySource(scene(12, 402, 300, shake=True), fps=12.5)
    # Pillow 13 orders the two passes of a resize otherwise where a picture is high: one value in nine differs by 1.
    if int(PIL.__version__.partition(".")[0]) >= 13:
        yield "upright array", ArraySource(scene(9, 60, 110), fps=10)
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, frame in enumerate(scene(10)):
        Image.fromarray(frame).save(pictures / f"{number}.png")
    yield "pictures", open_source(pictures)
    frames = [Image.fromarray(frame) for frame in scene(10, 48, 40)]
    frames[0].save(folder / "animated.png", save_all=True, append_images=frames[1:], duration=80)
    yield "animated", open_source(folder / "animated.png")
    for name in CODED if platform.machine() in ("x86_64", "AMD64") else ():
        yield name, open_source(CLIPS / name)


def hashes(folder: Path) -> dict[str, str]:
    """Hash of every input in every preprocessing, `input, preprocessing` to hexadecimal; needs an empty folder."""
    return {
        f"{name}, {kind}": hashlib.sha256(load_clip(source, spec).tobytes()).hexdigest()
        for name, source in sources(folder)
        for kind, spec in SPECS.items()
    }


def table() -> dict[str, dict[str, str]]:
    """The committed hashes by version."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


def write_clips() -> None:
    """Write the coded clips that are not there: other bytes would need other hashes."""
    CLIPS.mkdir(parents=True, exist_ok=True)
    for name, (codec, rate, rotation, aspect) in CODED.items():
        if (CLIPS / name).exists():
            continue
        options = {"bf": "2", "g": "6"}
        size = (402, 300) if name.startswith("large") else (96, 72)
        with av.open(str(CLIPS / name), "w") as out:
            stream = out.add_stream(codec, rate=rate or 25, options=options)
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            if rotation:
                stream.set_display_rotation(rotation)
            if aspect:
                stream.codec_context.sample_aspect_ratio = aspect
            if rate is None:
                stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
            for number, pixels in enumerate(scene(len(STAMPS), *size)):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
                frame.time_base = Fraction(1, 1000) if rate is None else 1 / rate
                frame.pts = STAMPS[number] if rate is None else number
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))


def main(unreleased: bool) -> None:
    """Write the table's entry of this version. Raises SystemExit where a released version would get other hashes."""
    import tempfile

    known, version = table(), str(PIXELS_VERSION)
    with tempfile.TemporaryDirectory() as folder:
        found = hashes(Path(folder))
    old = known.get(version, {})
    changed = [name for name in old if found.get(name, old[name]) != old[name]]
    if changed and not unreleased:
        raise SystemExit(f"version {version} has other pixels of {', '.join(changed)}: raise PIXELS_VERSION first")
    TABLE.write_text(json.dumps({**known, version: found}, indent=1) + "\n")
    print(f"{TABLE}: version {version}, {len(found)} hashes, {len(changed)} changed")


if __name__ == "__main__":
    if "--clips" in sys.argv[1:]:
        write_clips()
    main("--unreleased" in sys.argv[1:])
