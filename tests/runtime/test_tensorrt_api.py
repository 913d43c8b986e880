"""The table of TensorRT's names that the stand-in holds our calls to.

It was read with `dir()` from NVIDIA's bindings of each version (with stub libraries, on a machine without a GPU). This
says that the names are there, not that TensorRT does what we expect of them.
"""

from __future__ import annotations

from fake_tensorrt import TABLE, VERSIONS


def test_table_agrees_with_the_platform_notes(shared_dir):
    """The table in the notes was made separately; the two must not differ where they meet."""
    lines = (shared_dir / "docs" / "tensorrt-api.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert rows[0][1:] == list(VERSIONS)
    shared = {row[0]: "".join("y" if cell == "yes" else "-" for cell in row[1:]) for row in rows[1:]}
    common = {name: row for name, row in shared.items() if name in TABLE["names"]}
    assert len(common) > 100
    assert {name: TABLE["names"][name] for name in common} == common
