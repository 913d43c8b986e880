"""Recipes: everything a training run depends on, validated at the border and written beside its results.

A recipe is a YAML file that starts with the command that uses it. A preset (`paper` where none is named)
stands under its values and the command line over them. Unknown keys are errors; all errors are
reported together. Paths are relative to the working directory, in a file as on the command line; the
resolved recipe has them absolute.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from m2df_runtime.bundle.prompt_texts import check_template
from m2df_runtime.errors import InputError
from m2df_train.model.options import HEAD_OPTIONS
from m2df_train.public_benchmarks import BENCHMARKS
from m2df_train.recipe.overrides import merged, nested_problem, override, problems
from m2df_train.recipe.places import Model, Weights
from m2df_train.recipe.presets import CROP, PresetName, find_preset, recipe_defaults
from m2df_train.recipe.sections import (
    ClipRecipe,
    ContrastiveStage,
    DataRecipe,
    Evaluation,
    HeadRecipe,
    Section,
    TrainStage,
    TuningRecipe,
    check_clips,
)

RECIPES = Path(__file__).parent / "shipped"
_PRESET_ALONE = re.compile(r"^\s*preset=(?!\s*\{)")


class PresetChoice(Section):
    """A preset whose values stand under the recipe's own: its name, or a mapping with the test shots too.

    The variant of a benchmark follows from `data.dataset`.
    """

    name: PresetName = "paper"
    shot: Literal[1, 5] | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        return {"name": value} if isinstance(value, str) else value


class Recipe(Section):
    """A whole run.

    Attributes:
        name: The file's name without its ending.
        preset: Whose values stand under this recipe.
        seed: All randomness follows from it.
        model: open_clip name, or `local-dir:` or `hf-hub:` with a place.
        pretrained: Weights of it; without, the contrastive stage trains them.
        prompt: Template of the class texts.
    """

    name: str
    preset: PresetChoice = PresetChoice()
    seed: int = Field(default=0, ge=0, lt=1 << 40)
    model: Model
    pretrained: Weights | None = None
    prompt: str = "a photo of {}"
    clip: ClipRecipe = ClipRecipe()
    data: DataRecipe
    head: HeadRecipe = HeadRecipe()
    contrastive: ContrastiveStage | None = None
    tuning: TuningRecipe = TuningRecipe()
    train: TrainStage
    evaluation: Evaluation = Evaluation()

    @field_validator("prompt")
    @classmethod
    def _one_place(cls, value: str) -> str:
        try:
            return check_template(value)
        except InputError as error:
            raise ValueError(error.message) from None

    @model_validator(mode="after")
    def _clips_for_episodes(self) -> Recipe:
        check = ((self.data.clips, self.train, "data"), (self.evaluation.clips, self.evaluation, "evaluation"))
        for clips, stage, section in check:
            try:
                check_clips(clips, stage.shots, stage.queries)
            except ValueError as error:
                raise nested_problem(section, str(error)) from None
        if self.contrastive is not None and self.contrastive.varied and self.clip.channels != "motion":
            raise nested_problem("contrastive", "varied looks are made for clip.channels: motion")
        if self.data.root is None and self.evaluation.clips is None:
            raise nested_problem("evaluation", "generated actions need clips, the number of clips per action")
        return self


def load_recipe(name: str, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe that ships with m2df by name, or any YAML file by path.

    Args:
        name: Recipe or file.
        settings: `KEY.KEY=VALUE` each, over what the file says.

    Raises:
        InputError: No such recipe, not YAML, or keys that are unknown, missing or impossible (all of them named).
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"{name}: no such recipe", f"name a YAML file or one of: {', '.join(shipped_recipes())}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: not a recipe: its top level is no mapping of options")
    own_name = path.relative_to(RECIPES).with_suffix("").as_posix() if path.is_relative_to(RECIPES) else path.stem
    if isinstance(data.get("preset"), str):
        data["preset"] = {"name": data["preset"]}  # so that a setting of its shots or name leaves the other alone
    data, found = override({"name": own_name, **data}, [_PRESET_ALONE.sub("preset.name=", s) for s in settings])
    try:
        data = _over_preset(data)
    except InputError as error:
        found.append(str(error))
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        found += problems(error)
    if found:
        raise InputError(f"{path}: {'; '.join(found)}")
    return recipe


def shipped_recipes() -> list[str]:
    """Names of all recipes that ship with m2df."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def _over_preset(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values over those of its preset.

    Raises:
        InputError: The preset is that of another head. What is no preset at all the recipe's model reports.
    """
    try:
        choice = PresetChoice.model_validate(data.get("preset") or {})
    except ValidationError:
        return data
    size, named, dataset = _given(data, "clip", "size"), _given(data, "head", "name"), _given(data, "data", "dataset")
    preset = find_preset(
        choice.name,
        head=named if named in HEAD_OPTIONS else None,
        dataset=dataset if dataset in BENCHMARKS else None,
        shot=choice.shot,
        size=size if isinstance(size, int) else CROP,
    )
    return merged(recipe_defaults(preset, data, choice.shot), data)


def _given(data: dict[str, Any], section: str, key: str) -> Any:  # noqa: ANN401 - not validated yet
    values = data.get(section)
    return values.get(key) if isinstance(values, dict) else None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    return text
