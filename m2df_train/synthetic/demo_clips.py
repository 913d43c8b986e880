"""Writes the example clips that ship with the runtime: generated people doing actions no training has seen.

    python -m m2df_train.synthetic.demo_clips m2df_runtime/demo

One folder of support clips per action, one of queries, and a recording of some of the actions, H.264 in MP4. Generated
and free of rights.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from m2df_runtime.clips.source import FrameSource
from m2df_train.synthetic import render_action
from m2df_train.synthetic.actions import ACTIONS
from m2df_train.synthetic.recording import SyntheticRecording

CLIPS = ("clap", "golf_swing", "high_knees", "punch_person", "side_bend")  # of the test split
# The first three seeds, whatever a model makes of their clips; people and places of the three differ.
_SUPPORT_SEEDS, _QUERY_SEED = (0, 1), 2
_SECONDS = 40.0
_CRF, _CRF_OF_RECORDING = 26, 33  # quality; the recording would take 1.5 MB at that of the clips


def demo_recording() -> SyntheticRecording:
    """One person who does some of the actions, with standing and walking about between them."""
    return SyntheticRecording([ACTIONS[name] for name in CLIPS], [], seed=0, seconds=_SECONDS, people=1)


def demo_clips() -> dict[Path, FrameSource]:
    """What ships, by path: `support/<action>/<n>.mp4`, `queries/<action>.mp4` and `recording.mp4`."""
    support = {
        Path("support", action, f"{number}.mp4"): render_action(action, seed)
        for action in CLIPS
        for number, seed in enumerate(_SUPPORT_SEEDS, start=1)
    }
    queries = {Path("queries", f"{action}.mp4"): render_action(action, _QUERY_SEED) for action in CLIPS}
    return {**support, **queries, Path("recording.mp4"): demo_recording()}


def write_clips(folder: Path) -> None:
    """Write what ships under `folder`."""
    for path, clip in demo_clips().items():
        _write(folder / path, clip, _CRF_OF_RECORDING if isinstance(clip, SyntheticRecording) else _CRF)


def _write(path: Path, clip: FrameSource, crf: int) -> None:
    frames = clip.read(np.arange(clip.n_frames))
    path.parent.mkdir(parents=True, exist_ok=True)
    encode_mp4(path, frames, clip.fps, crf)


def encode_mp4(path: Path, frames: NDArray[np.uint8], fps: float, crf: int = _CRF) -> None:
    """Encode RGB frames [n, H, W, 3] as H.264 in MP4; an odd last row or column, which it cannot hold, is cut."""
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": f"{crf}"})
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        for frame in np.ascontiguousarray(frames[:, :height, :width]):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


if __name__ == "__main__":
    write_clips(Path(sys.argv[1]))
