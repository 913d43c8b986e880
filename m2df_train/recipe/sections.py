"""The sections of a recipe, each a frozen model; defaults are those of the `paper` preset (method section 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from m2df_runtime.clips.sampling import Sampler
from m2df_runtime.pixels.spec import CLIP_MEAN, CLIP_STD, ClipSpec
from m2df_train.model.options import HeadName, head_options
from m2df_train.public_benchmarks import BenchmarkName
from m2df_train.recipe.overrides import nested_problems
from m2df_train.recipe.places import Labels, Place

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
TEST_SHOTS = (1, 5)  # where a recipe names none; training takes those of the tests


class Section(BaseModel):
    """What all sections have: values cannot change, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SamplerRecipe(Section):
    """Which frames of a clip are taken: rules of `m2df_runtime.clips.sampling`.

    Attributes:
        train: For training clips; a rule that has a random form uses it.
        eval: For evaluation and deployment, always in its fixed form.
    """

    train: Sampler = "segment"
    eval: Sampler = "segment_center"

    @field_validator("eval")
    @classmethod
    def _fixed(cls, value: Sampler) -> Sampler:
        if value == "segment":
            raise ValueError("segment is random; segment_center is its fixed form")
        return value


class PixelNorm(Section):
    """Mean and standard deviation of pixels in [0, 1], per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


PIXEL_NORMS = {"clip": (CLIP_MEAN, CLIP_STD), "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}


class ClipRecipe(Section):
    """How a clip becomes pixels; `ClipSpec` explains the options that are also its own.

    Attributes:
        sampler: Frame sampling in training and afterwards.
        pixel_norm: `clip` for CLIP's mean and standard deviation, `none` for pixels as they are, or both values.
    """

    frames: int = 8
    size: int = 224
    resize: Literal["short", "squash"] = "short"
    short_side: int | None = 256
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    antialias: bool = True
    sampler: SamplerRecipe = SamplerRecipe()
    region: Literal["full", "motion"] = "full"
    channels: Literal["rgb", "motion"] = "rgb"
    pixel_norm: Literal["clip", "none"] | PixelNorm = "clip"

    @model_validator(mode="after")
    def _possible(self) -> ClipRecipe:
        self._spec(self.sampler.eval)
        return self

    @property
    def deployed(self) -> ClipSpec:
        """Preprocessing of evaluation and deployment."""
        return self._spec(self.sampler.eval)

    @property
    def training(self) -> ClipSpec:
        """The same with the frames of training."""
        return self._spec(self.sampler.train)

    def _spec(self, sampler: Sampler) -> ClipSpec:
        values = self.model_dump(exclude={"sampler", "pixel_norm"})
        norm = self.pixel_norm
        mean, std = (norm.mean, norm.std) if isinstance(norm, PixelNorm) else PIXEL_NORMS[norm]
        try:
            return ClipSpec(**values, sampler=sampler, mean=mean, std=std)
        except ValidationError as error:
            raise nested_problems(error) from None


class ColourJitter(Section):
    """Random colour of a clip, one draw for all its frames (method section 1.5).

    Attributes:
        brightness: Factors are drawn from [1 - value, 1 + value]; the same for contrast and saturation.
        contrast: See brightness.
        saturation: See brightness.
        hue: Shift in [-value, value] turns of the colour circle.
        grey: Probability that the clip loses its colour before the others act.
    """

    brightness: Share = 0.5
    contrast: Share = 0.5
    saturation: Share = 0.5
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.25
    grey: Share = 0.3


class DataRecipe(Section):
    """Where clips come from and how training varies them.

    Attributes:
        root: Folder of class folders, or with `dataset` a download of that benchmark; none: generated actions.
            A folder may hold `train`, `val` and `test`; otherwise its classes are divided at random.
        dataset: The benchmark.
        split_files: Folder of a public repository's lists of the benchmark's videos.
        labels: Spelling of a benchmark's class texts, or a CSV file with columns class,text.
        validation: Share of the classes of an undivided folder that validate.
        test: Share of them that test.
        composed: Composed actions beside the named ones, of generated data, each with a text that no other has.
        clips: Clips per training class: at most that many, of generated actions just as many.
        crop: Cut training clips at a random place where the resized clip is larger than the model's input.
        hflip: Probability that a training clip is mirrored.
        hflip_query: The same for the queries of an episode, where it differs.
        query_colour: Colour changes of the queries.
        cache_gb: Bound of the cache of decoded frames and features on disk; 0 keeps nothing.
    """

    root: Place | None = None
    dataset: BenchmarkName | None = None
    split_files: Place | None = None
    labels: Labels = "paper"
    validation: Share = 0.2
    test: Share = 0.2
    composed: int = Field(default=300, ge=0, le=10_000)  # 20,000 draws have 10,597 different texts
    clips: int | None = Field(default=None, gt=1)
    crop: bool = True
    hflip: Share = 0.5
    hflip_query: Share | None = None
    query_colour: ColourJitter | None = None
    cache_gb: Strength = 20.0

    @model_validator(mode="after")
    def _complete(self) -> DataRecipe:
        if self.root is None and (self.dataset or self.split_files):
            raise ValueError("dataset and split_files need root, the folder of the videos (--data DIR)")
        if self.root is None and self.clips is None:
            raise ValueError("root names the folder of the videos (--data DIR); generated actions need clips, a number")
        if self.split_files and not self.dataset:
            raise ValueError("split_files needs dataset")
        return self


class HeadRecipe(Section):
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


class LoraRecipe(Section):
    """Low-rank adapters beside the backbone's linear, attention and convolution weights.

    Attributes:
        rank: Rank of the update.
        alpha: The update counts alpha / rank.
        dropout: Dropout before it.
    """

    rank: int = Field(default=8, ge=1)
    alpha: Rate = 16.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class TuningRecipe(Section):
    """What of the backbone is trained with the head; the text tower never is.

    Attributes:
        strategy: `full` trains the image tower, `adapter` low-rank additions to it, `frozen` nothing: clips are
            then encoded once and episodes cost no pixels.
        lora: The adapters.
        views: Random variants of every training clip that are encoded when the backbone is frozen.
        gradient_checkpointing: Compute activations of the image tower twice instead of keeping them.
        bn_mode: Batch norm of a ResNet: running statistics (`frozen`), those of the batch (`train`), or
            `mixed` as in the public CLIP-M2DF code (frozen until the first validation, the batch's afterwards).
    """

    strategy: Literal["full", "frozen", "adapter"] = "full"
    lora: LoraRecipe = LoraRecipe()
    views: int = Field(default=1, ge=1)
    gradient_checkpointing: bool = False
    bn_mode: Literal["frozen", "train", "mixed"] = "frozen"


class ContrastiveStage(Section):
    """Training of a small CLIP from nothing on generated clips and their descriptions."""

    steps: int = Field(gt=0, description="batches of clips")
    looks: int = Field(default=2, gt=0, description="updates per batch, each with other frames or a mirrored scene")
    varied: bool = Field(default=False, description="each look with another crop, light and strength of motion")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: both towers under autocast")
    classes: int = Field(gt=1, description="actions per batch")
    clips: int = Field(gt=1, description="clips per action and batch")
    frames: int = Field(default=4, gt=0, description="frames per clip, one drawn at random from each part of it")
    composed: float = Field(default=0.7, ge=0, le=1, description="share of composed actions, else named ones")
    learning_rate: Rate = 2e-3
    weight_decay: Strength = 0.05
    warmup: int = Field(default=50, ge=0, description="steps of a linear rise at the beginning of a cycle")
    cycles: int = Field(default=1, gt=0, description="the rate falls to zero as a cosine and begins anew, this often")


class Schedule(Section):
    """The learning rate over the run, counted in episodes.

    Attributes:
        kind: `constant`, `cosine` to zero, or `steps`: times `factor` at every milestone.
        warmup: Episodes of a linear rise at the beginning.
        start: Share of the learning rate the rise begins at.
        milestones: Episodes at which the rate falls.
        factor: What it is multiplied with there.
    """

    kind: Literal["constant", "cosine", "steps"] = "constant"
    warmup: int = Field(default=0, ge=0)
    start: Share = 0.0
    milestones: tuple[int, ...] = ()
    factor: Share = 0.1


class TrainStage(Section):
    """Episodes and optimiser.

    Attributes:
        episodes: Training episodes.
        per_update: Episodes whose gradients make one update; everything else about batches follows from it.
        way: Classes per episode.
        shots: Support clips per class; episodes take them in turns.
        queries: Query clips per class.
        optimizer: Adam with coupled weight decay, or AdamW. Norms are not decayed.
        learning_rate: At the end of the warm-up.
        backbone_rate: Share of it for the image tower or its adapters.
        weight_decay: Of all weights but those of norms.
        schedule: Learning rate over the run.
        clip_norm: Largest norm of an update's gradient; none for no bound.
        precision: Arithmetic of image tower and head: fp32, or mixed with bf16 or fp16.
        shuffled_prompts: Share of episodes with other classes' texts, as users' labels may be.
        validate_every: Episodes between validations; best and last weights are kept then.
    """

    episodes: int = Field(gt=0)
    per_update: int = Field(default=16, gt=0)
    way: int = Field(default=5, gt=1)
    shots: tuple[int, ...] = TEST_SHOTS
    queries: int = Field(default=5, gt=0)
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: Rate = 1e-5
    backbone_rate: Strength = 1.0
    weight_decay: Strength = 0.0
    schedule: Schedule = Schedule()
    clip_norm: Rate | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    shuffled_prompts: Share = 0.0
    validate_every: int = Field(default=1000, gt=0)

    @field_validator("shots")
    @classmethod
    def _some_shots(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return check_shots(value)


class Evaluation(Section):
    """Episodes on classes that are in no training, for validation and for the final report.

    Attributes:
        way: Classes per episode; fewer where a split has fewer.
        shots: Numbers of support clips per class that are measured.
        queries: Query clips per class.
        clips: Clips per class at most; of generated actions just as many.
        validation_episodes: Episodes of every validation, which choose the weights that are kept.
        test_episodes: Episodes of the report at the end.
    """

    way: int = Field(default=5, gt=1)
    shots: tuple[int, ...] = TEST_SHOTS
    queries: int = Field(default=1, gt=0)
    clips: int | None = Field(default=None, gt=1)
    validation_episodes: int = Field(default=500, gt=0)
    test_episodes: int = Field(default=10_000, gt=0)

    @field_validator("shots")
    @classmethod
    def _some_shots(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return check_shots(value)


def check_shots(shots: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse an empty list and numbers below 1. Raises ValueError."""
    if not shots or min(shots) < 1:
        raise ValueError(f"shots {list(shots)}: name at least one number, each at least 1")
    return shots


def check_clips(clips: int | None, shots: Sequence[int], queries: int) -> None:
    """Refuse what would stop a run only after its towers are trained. Raises ValueError."""
    if clips is not None and max(shots) + queries > clips:
        raise ValueError(f"clips {clips}: {max(shots)} shots and {queries} queries need {max(shots) + queries}")
