"""The pixels of clips are those that the committed table has for this `PIXELS_VERSION`."""

from __future__ import annotations

from pathlib import Path

import pixel_hashes

from m2df_runtime.pixels.spec import PIXELS_VERSION

REMEDY = (
    "If that is meant, raise PIXELS_VERSION in m2df_runtime/pixels/load.py by one, so that banks and caches of the old "
    "pixels are made anew, run `python -m tests.runtime.pixel_hashes` and commit tests/golden/pixels.json."
)


def test_other_pixels_have_another_version(tmp_path: Path) -> None:
    table = pixel_hashes.table()
    assert max(map(int, table)) == PIXELS_VERSION, f"the newest hashes are of another version. {REMEDY}"
    committed, found = table[str(PIXELS_VERSION)], pixel_hashes.hashes(tmp_path)
    changed = [name for name in found if committed.get(name) != found[name]]
    assert not changed, f"other pixels than version {PIXELS_VERSION} made: {'; '.join(changed)}. {REMEDY}"
    assert found.keys() <= committed.keys()


def test_the_clips_cover_what_they_are_for(tmp_path: Path) -> None:
    """Every preprocessing of one clip, and every clip in one preprocessing, gives pixels of its own."""
    found = pixel_hashes.hashes(tmp_path)
    assert len(set(found.values())) >= len(found) - len(found) // 8
