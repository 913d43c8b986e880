"""docs/methods.md says what the code does: its files, its options and the values of the presets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from m2df_train.model.options import HEAD_OPTIONS, head_options
from m2df_train.recipe.presets import find_preset

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


def options_of(name: str, head: str | None = None, **variant) -> dict:
    """Options of the head under a preset, defaults filled in."""
    preset = find_preset(name, head=head, **variant)
    return head_options(preset.head, preset.values["head"]["options"]).model_dump(mode="json")


@pytest.mark.parametrize(
    ("column", "name", "head"),
    [(0, "paper", "m2df"), (1, "official-m2df", "m2df"), (2, "paper", "clip-fsar"), (3, "official-fsar", "clip-fsar")],
)
def test_the_table_of_options_is_complete_and_right(column, name, head):
    options = flat(options_of(name, head))
    cells = {option: row[column] for option, row in table(4).items()}
    assert set(options) == {option for option, cell in cells.items() if cell != "–"}
    for option, value in options.items():
        cell = cells[option]
        plain = cell.split(";")[0] if option.split(".")[-1] in OF_DATASET else cell
        assert plain == shown(value), option


@pytest.mark.parametrize(("column", "name"), [(0, "paper"), (1, "official-m2df"), (2, "official-fsar")])
def test_the_table_of_clips_and_training_is_complete_and_right(column, name):
    values = flat({key: value for key, value in find_preset(name).values.items() if key != "head"})
    values |= {"data.hflip_query": "as `data.hflip`", "data.query_colour": "off"}
    values["train.shots"] = {"test": "as in the tests"}.get(find_preset(name).shots, 1)
    values.pop("train.schedule.factor", None)
    cells = {option: row[column].split(";")[0] for option, row in table(3).items()}
    assert cells == {option: shown(value) for option, value in values.items()}


def test_what_a_cell_says_of_a_variant_is_right():
    def value(option, name, **variant):
        preset = find_preset(name, **variant)
        return (flat(preset.values) | flat(options_of(name, **variant)))[option]

    mixed = {**table(4), **table(3)}
    said = {option: [cell.split("; ")[1] for cell in row if ";" in cell] for option, row in mixed.items()}
    said = {option: cells for option, cells in said.items() if cells}
    kinetics, odd = {"dataset": "kinetics100"}, {"dataset": "ucf101", "shot": 5}
    assert said.pop("data.hflip") == [f"{value('data.hflip', 'paper', dataset='ssv2-full'):g} for SSv2"]
    assert said.pop("data.hflip_query") == [f"{value('data.hflip_query', 'official-fsar', **kinetics)} for Kinetics"]
    assert said.pop("data.query_colour") == ["on for Kinetics"]
    assert find_preset("official-fsar", **kinetics).values["data"]["query_colour"] is not None
    for option in ("clip.sampler.train", "clip.sampler.eval"):
        assert said.pop(option) == [f"{value(option, 'official-fsar', **kinetics)} for Kinetics"]
    norm = find_preset("official-fsar", **odd).values["clip"]["pixel_norm"]
    assert said.pop("clip.pixel_norm") == [f"mean {norm['mean'][0]} and std {norm['std'][0]} for UCF101 at 5 shots"]
    assert said.pop("train.weight_decay") == [
        f"{value('train.weight_decay', 'paper', head='clip-fsar')} with clip-fsar"
    ]
    assert said.pop("train.schedule.kind") == [
        f"{value('train.schedule.kind', 'paper', head='clip-fsar')} with clip-fsar"
    ]
    assert said.pop("prototype.merge") == [f"{value('prototype.merge', 'official-fsar', **odd)} at 5 shots"]
    single = shown(value("otam.bidirectional", "official-m2df", **kinetics))
    assert said.pop("otam.bidirectional") == [f"{single} for Kinetics at 1 shot"]
    assert said.pop("loss.lambda_text") == ["V of the dataset"] * 2
    assert said == {}


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
