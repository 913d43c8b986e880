"""One clip that cannot be read is named and left out of what an export is calibrated and compared on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_bundle import write_clip

from m2df_export.check.parity import Parity
from m2df_export.precision.calibration import calibration_frames
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


def test_parity_and_calibration_go_on_without_it(data: Path, model, tmp_path_factory, caplog, monkeypatch):
    spec = ClipSpec(frames=4, size=32)
    parity = Parity(model("training-free"), tmp_path_factory.mktemp("walks"), data, random=False)
    request = parity.reference.request
    assert (len(request.clips), request.episodes, request.way) == (4, 200, 2)
    frames = calibration_frames(spec, data)
    assert len(frames) == 4 + 8
    for name in ("red/0.mp4", "blue/1.mp4"):
        assert caplog.text.count(f"{data / name}: ") == 2
    # What is wrong with every clip in the same way ends the work at the first.
    monkeypatch.setenv("M2DF_MAX_PIXELS", "many")
    with pytest.raises(InputError, match="M2DF_MAX_PIXELS"):
        calibration_frames(spec, data)
