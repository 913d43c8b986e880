"""One clip that cannot be read is named and left out of what an export is calibrated and compared on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import write_clip

from m2df_export.check.calibration_frames import calibration_frames
from m2df_export.check.end_to_end import episode_set
from m2df_export.graphs.tokenizer_json import build_tokenizer_json
from m2df_runtime.bundle.labels import LabelRules
from m2df_runtime.bundle.tokenizer import Tokenizer
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.spec import ClipSpec


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for label in ("red", "blue"):
        for number in range(3):
            write_clip(tmp_path / label / f"{number}.mp4", label, seed=number)
    whole = (tmp_path / "red" / "0.mp4").read_bytes()
    (tmp_path / "red" / "0.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "blue" / "1.mp4").write_text("not a video")
    return tmp_path


def test_parity_and_calibration_go_on_without_it(data: Path, caplog: pytest.LogCaptureFixture, monkeypatch):
    spec = ClipSpec(frames=4, size=32)
    episodes = episode_set(spec, LabelRules(), Tokenizer.from_bytes(build_tokenizer_json()), data)
    assert (len(episodes.clips), len(episodes.episodes)) == (4, 200)
    frames = calibration_frames(spec, data)
    assert len(frames) == 4 + 8
    for name in ("red/0.mp4", "blue/1.mp4"):
        assert caplog.text.count(f"{data / name}: ") == 2
    # What is wrong with every clip in the same way ends the work at the first.
    monkeypatch.setenv("M2DF_MAX_PIXELS", "many")
    with pytest.raises(InputError, match="M2DF_MAX_PIXELS"):
        calibration_frames(spec, data)
