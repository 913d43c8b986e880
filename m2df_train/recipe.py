"""Recipes: everything a training run depends on, validated at the border and written beside its results.

A recipe is a YAML file that starts with the command that uses it. A preset may stand under its values
and the command line over them. Unknown keys are errors; all errors are reported together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from m2df_runtime.errors import InputError
from m2df_runtime.labels import check_template
from m2df_runtime.preprocess import ClipSpec
from m2df_runtime.sampling import Sampler
from m2df_train.data.benchmarks import BenchmarkName
from m2df_train.model.heads import HEAD_OPTIONS, HeadName, head_options
from m2df_train.overrides import merged, nested_problems, override, problems
from m2df_train.presets import CROP, PresetName, find_preset, recipe_defaults

RECIPES = Path(__file__).parent / "recipes"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _fixed_frames(clip: ClipSpec) -> ClipSpec:
    """Refuse a sampler that deployment cannot follow. Raises ValueError."""
    if clip.sampler == "segment":
        raise ValueError(
            "sampler segment is random; segment_center is its fixed form, for training see episodic.sampler"
        )
    return clip


DeployedClip = Annotated[ClipSpec, AfterValidator(_fixed_frames)]


class HeadRecipe(_Section):
    """Which head, and its options (see the head's option model)."""

    name: HeadName = "m2df"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _options_of_this_head(self) -> HeadRecipe:
        try:
            head_options(self.name, self.options)
        except ValidationError as error:
            raise nested_problems(error, "options") from None
        return self


class PresetChoice(_Section):
    """A preset whose values stand under the recipe's own: its name, or a mapping with the variant."""

    name: PresetName
    dataset: BenchmarkName | None = None
    shot: Literal[1, 5] | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        return {"name": value} if isinstance(value, str) else value


class ContrastiveStage(_Section):
    """Training of a small CLIP from nothing on generated clips and their descriptions."""

    steps: int = Field(gt=0)
    classes: int = Field(gt=1, description="actions per batch")
    clips: int = Field(gt=1, description="clips per action and batch")
    frames: int = Field(4, gt=0, description="frames per clip, one drawn at random from each part of it")
    composed: float = Field(0.7, ge=0, le=1, description="share of actions composed from parts, else named ones")
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 50


class EpisodicStage(_Section):
    """Training of the head on episodes of features encoded once by the frozen backbone."""

    episodes: int = Field(gt=0)
    per_update: int = Field(8, gt=0, description="episodes whose gradients are summed into one update")
    way: int = Field(5, gt=1)
    shots: tuple[int, ...] = (1, 5)
    sampler: Sampler | None = Field(None, description="frame sampling of the pool's clips; none: that of `clip`")
    queries: int = Field(5, gt=0, description="queries per class")
    composed: int = Field(300, ge=0, description="composed actions in the pool, beside all named training actions")
    clips: int = Field(24, gt=1, description="clips per action in the pool")
    shuffled_prompts: float = Field(
        0.3, ge=0, le=1, description="share of episodes with other classes' texts, as users' labels may be"
    )
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    validate_every: int = Field(200, gt=0)

    @model_validator(mode="after")
    def _enough_clips(self) -> EpisodicStage:
        _check_episodes(self.shots, self.queries, self.clips)
        return self


class Evaluation(_Section):
    """Episodes on unseen generated actions, for validation and for the final report."""

    way: int = Field(default=5, gt=1)
    shots: tuple[int, ...] = (1, 5)
    queries: int = Field(default=1, gt=0)
    clips: int = 20
    validation_episodes: int = Field(default=500, gt=0)
    test_episodes: int = Field(default=2000, gt=0)

    @model_validator(mode="after")
    def _enough_clips(self) -> Evaluation:
        _check_episodes(self.shots, self.queries, self.clips)
        return self


def _check_episodes(shots: Sequence[int], queries: int, clips: int) -> None:
    """Refuse what would stop a run only after its towers are trained. Raises ValueError."""
    if not shots or min(shots) < 1:
        raise ValueError(f"shots {list(shots)}: name at least one number, each at least 1")
    if max(shots) + queries > clips:
        raise ValueError(f"clips {clips}: {max(shots)} shots and {queries} queries need {max(shots) + queries}")


class Recipe(_Section):
    """A whole run. `pretrained` names weights; without it the contrastive stage trains them."""

    name: str
    preset: PresetChoice | None = None
    seed: int = 0
    model: str
    pretrained: str | None = None
    prompt: str = "a photo of {}"
    clip: DeployedClip
    head: HeadRecipe = HeadRecipe()
    contrastive: ContrastiveStage
    episodic: EpisodicStage
    evaluation: Evaluation = Evaluation()

    @field_validator("prompt")
    @classmethod
    def _one_place(cls, value: str) -> str:
        try:
            return check_template(value)
        except InputError as error:
            raise ValueError(error.message) from None


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
        shipped = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise InputError(f"{name}: no such recipe", f"name a YAML file or one of: {shipped}")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: not a recipe: its top level is no mapping of options")
    data, found = override({"name": path.stem, **data}, settings)
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


def _over_preset(data: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values over those of the preset it names.

    Raises:
        InputError: The preset is that of another head. What is no preset at all the recipe's model reports.
    """
    try:
        choice = PresetChoice.model_validate(data.get("preset"))
    except ValidationError:
        return data
    clip, head = data.get("clip"), data.get("head")
    size = clip.get("size") if isinstance(clip, dict) else None
    named = head.get("name") if isinstance(head, dict) else None
    preset = find_preset(
        choice.name,
        head=named if named in HEAD_OPTIONS else None,
        dataset=choice.dataset,
        shot=choice.shot,
        size=size if isinstance(size, int) else CROP,
    )
    return merged(recipe_defaults(preset, data, choice.shot), data)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    return text
