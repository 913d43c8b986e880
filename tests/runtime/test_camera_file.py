"""cameras.yaml: what it gives, and one line with the place of every mistake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from m2df_runtime.errors import InputError
from m2df_runtime.stream.camera_file import read_cameras
from m2df_runtime.stream.events import EventRules

WHOLE = """
defaults:
  window: 2
  enter: 0.7
  labels: [wave]
cameras:
  - name: door
    url: rtsp://user:${DOOR_PASSWORD}@192.168.1.20/stream1
    zones:
      steps: [0, 0.4, 0.5, 0.6]
      gate: [320, 0, 320, 240]
    leave: 0.3
    labels: [wave, "no"]
  - name: Hof ü
    device: 0
    window: auto
    stride: 0.5
    max_duration: .inf
  - name: old
    file: clips/a.mp4
  - name: spare
    url: rtsp://user:${NOT_SET}@camera/1
    enabled: false
"""


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "cameras.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_cameras_take_from_the_defaults_what_they_do_not_say(
    written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOOR_PASSWORD", "a b")
    path = written(WHOLE)
    door, yard, old = read_cameras(path)
    assert (door.name, door.source) == ("door", "rtsp://user:${DOOR_PASSWORD}@192.168.1.20/stream1")
    assert door.zones == {"steps": (0, 0.4, 0.5, 0.6), "gate": (320, 0, 320, 240)}
    assert (door.window, door.stride, door.labels) == (2.0, None, ("wave", "no"))
    assert door.rules == EventRules(enter=0.7, leave=0.3)
    assert (yard.name, yard.source, yard.window, yard.stride, yard.labels) == ("Hof ü", 0, None, 0.5, ("wave",))
    assert (old.source, old.window, old.zones, old.rules) == (path.parent / "clips" / "a.mp4", 2.0, {}, EventRules(0.7))


ONE = "cameras:\n- name: a\n  url: rtsp://a:hunter2@x/1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ONE + "  windw: 3\n", r"line 4, cameras\[0\]\.windw: no such key; did you mean window\?"),
        (ONE + "  xyz: 3\n", r"line 4, cameras\[0\]\.xyz: no such key; known are window, stride"),
        (ONE + "default: {}\n", r"line 4, default: no such key; did you mean defaults\?"),
        ("defaults:\n  name: a\n" + ONE, r"line 2, defaults\.name: no such key"),
        (ONE + "  window: 0\n", r"line 4, cameras\[0\]\.window: should be greater than 0"),
        (ONE + "  window: two\n", r"line 4, cameras\[0\]\.window: should be a valid number"),
        (ONE + "  stride: .nan\n", r"line 4, cameras\[0\]\.stride: should be a finite number"),
        (ONE + "  enabled: 1\n", r"line 4, cameras\[0\]\.enabled: should be a valid boolean"),
        (ONE + "  labels: wave\n", r"line 4, cameras\[0\]\.labels: a list is wanted"),
        (ONE + "  labels:\n  - wave\n  - no\n", r"line 6, cameras\[0\]\.labels\[1\]: text is wanted; put it"),
        (ONE + "  zones:\n    b: 1,2,3,4\n", r"line 5, cameras\[0\]\.zones\.b: a list is wanted"),
        (ONE + "  zones: {b: [1, 2, 3]}\n", r"line 2, cameras\[0\], a: zone b: 1, 2, 3 are not four numbers"),
        (ONE + "  leave: 0.9\n", r"line 2, cameras\[0\], a: events enter at 0\.7 and leave at 0\.9"),
        (ONE + "  device: 0\n", r"line 2, cameras\[0\]: it has url and device; give one of url, device, file"),
        ("cameras:\n- name: a\n", r"line 2, cameras\[0\]: it has no source; give one of"),
        ("cameras:\n- device: 0\n", r"line 2, cameras\[0\]: name is missing"),
        ("cameras:\n- {name: ' a', device: 0}\n", r"line 2, cameras\[0\],  a: a name begins and ends"),
        (ONE + "- name: b\n  device: 1\n- name: a\n  device: 0\n", r"line 6, cameras\[2\]\.name: 2 cameras are called"),
        (ONE.replace("x/1", "${NOT_SET}/1"), r"line 2, cameras\[0\], a: rtsp://a:\*\*\*@.*\$\{NOT_SET\} is not in the"),
        (ONE.replace("rtsp", "ftp"), r"line 2, cameras\[0\], a: ftp://a:\*\*\*@x/1: not an address that is read"),
        (ONE + "  enabled: false\n", "no camera is enabled"),
        ("cameras: []\n", "line 1, cameras: List should have at least 1 item"),
        ("", "line 1: keys with their values are wanted"),
        ("- a\n", "line 1: keys with their values are wanted"),
        (ONE + "  bad\n", "line 5: could not find expected ':'"),
        (ONE + "  url: b\n", "line 4: url stands twice"),
        ("a: &a [1]\nb: *a\n", "line 2: aliases are not read; use defaults"),
        ("a: &a {b: 1}\nc:\n  <<: *a\n", "line 3: aliases are not read"),
        ("c:\n  <<: {b: 1}\n", "line 2: << is not read; use defaults"),
        ("[" * 10_000, "line 1: more than 10 levels"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1: could not determine a constructor"),
        ("1: 2\n", "line 1: a key that is no text; put it into quotes"),
        ("a: 2020-99-99\n", "not YAML: month must be in"),
        ("a: \x00\n", "not YAML: unacceptable character"),
        (b"\xff\xfe\xff", "not UTF-8 text"),
        ("#" * (1 << 20) + "\n", "larger than 1 MiB"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_says_where(
    text: str | bytes, message: str, written: Callable[[str | bytes], Path]
) -> None:
    path = written(text)
    with pytest.raises(InputError, match=message) as caught:
        read_cameras(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and "\n" not in said and "hunter2" not in said


def test_several_mistakes_are_told_at_once_and_hundreds_are_not(written: Callable[[str], Path], tmp_path: Path) -> None:
    many = "cameras:\n" + "".join(f"- name: c{k}\n  device: {k}\n  leave: 0.9\n" for k in range(300))
    with pytest.raises(InputError, match=r"line 2, .*line 5, .*line 14, .*; and 295 more"):
        read_cameras(written(many))
    with pytest.raises(InputError, match="No such file"):
        read_cameras(tmp_path / "gone.yaml")
    with pytest.raises(InputError, match="a folder, not a file"):
        read_cameras(tmp_path)


def test_the_documented_file_is_one(written: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "live.md").read_text(encoding="utf-8")
    example = page.split("## Many cameras: cameras.yaml")[1].split("```yaml\n")[1].split("```")[0]
    monkeypatch.setenv("DOOR_PASSWORD", "secret")
    door, yard = read_cameras(written(example))
    assert (door.name, [*door.zones], door.labels) == ("door", ["steps", "gate"], ("wave", "fall"))
    assert (yard.source, yard.window, yard.rules.enter, yard.rules.cooldown) == (0, 2.0, 0.8, 30.0)
