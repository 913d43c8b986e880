"""docs/methods.md says what the code does: its files, its options and the values of the presets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from m2df_runtime.preprocess import CLIP_MEAN, CLIP_STD
from m2df_train.model.heads import HEAD_OPTIONS, head_options
from m2df_train.presets import find_preset

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
OF_DATASET = {"lambda_text", "merge", "bidirectional"}  # last part of options whose cell names a variant


def table(columns: int) -> dict[str, list[str]]:
    """Rows of the preset tables by option, cells of the given number of columns."""
    section = PAGE[PAGE.index("## Presets") : PAGE.index("## Checkpoints")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    return {row[0].split("`")[1]: row[1:] for row in rows if len(row) == columns + 1 and row[0].startswith("`")}


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def shown(value: object) -> str:
    """A value as a cell of the table writes it."""
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value)
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize(
    ("column", "name", "head"),
    [(0, "paper", "m2df"), (1, "official-m2df", "m2df"), (2, "paper", "clip-fsar"), (3, "official-fsar", "clip-fsar")],
)
def test_the_table_of_options_is_complete_and_right(column, name, head):
    options = flat(head_options(head, find_preset(name, head=head).options).model_dump(mode="json"))
    cells = {option: row[column] for option, row in table(4).items()}
    assert set(options) == {option for option, cell in cells.items() if cell != "–"}
    for option, value in options.items():
        cell = cells[option]
        plain = cell.split(";")[0] if option.split(".")[-1] in OF_DATASET else cell
        assert plain == shown(value), option


def test_the_table_of_pixels_and_frames_is_right():
    presets = [find_preset(name) for name in ("paper", "official-m2df", "official-fsar")]
    rows = table(3)
    for key in ("frames", "size", "resize", "short_side", "interpolation", "antialias", "sampler"):
        assert [cell.split(";")[0] for cell in rows[f"clip.{key}"]] == [shown(p.clip[key]) for p in presets], key
    assert [c.split(";")[0] for c in rows["episodic.sampler"]] == [p.training.sampler_train for p in presets]
    assert [p.clip["mean"] == list(CLIP_MEAN) for p in presets] == [c.startswith("CLIP") for c in rows["clip.mean"]]
    assert [p.clip["std"] == list(CLIP_STD) for p in presets] == [c.startswith("CLIP") for c in rows["clip.mean"]]


def test_every_file_and_option_it_names_exists():
    files = re.findall(r"`((?:m2df_|tests)[\w/]+(?:\.py)?)`", PAGE) + re.findall(r"\]\((\w+\.svg)\)", PAGE)
    assert len(files) > 15
    missing = [name for name in files if not (ROOT / name).exists() and not (ROOT / "docs" / name).exists()]
    assert missing == []
    known = {option for name in HEAD_OPTIONS for option in flat(head_options(name).model_dump(mode="json"))}
    groups = "|".join({option.split(".")[0] for option in known if "." in option})
    for option in re.findall(rf"`((?:{groups})\.\w+)`", PAGE):
        assert option in known, option
    for option in known:
        assert f"`{option}`" in PAGE, option


def test_equations_are_balanced():
    assert PAGE.count("```") % 2 == 0
    for equation in re.findall(r"```math\n(.*?)```", PAGE, re.S) + re.findall(r"\$`(.*?)`\$", PAGE):
        assert equation.count("{") == equation.count("}"), equation
        assert len(re.findall(r"\\(?:big|Big)\b", equation)) % 2 == 0, equation
