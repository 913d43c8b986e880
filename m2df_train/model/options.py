"""Options of the heads: one frozen model per head, with the papers' values as defaults (method section 9).

Nothing here needs PyTorch, so that a recipe with a wrong option is refused before it loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

HeadName = Literal["m2df", "clip-fsar", "training-free"]
PromptMode = Literal["sample", "argmax", "expectation", "none"]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)


class OtamOptions(_Frozen):
    """Alignment of query and prototype frames (method section 2.7).

    Attributes:
        lam: Smoothing of the soft minimum; spelled ``lambda`` in files.
        bidirectional: Add the alignment with the roles swapped.
    """

    lam: Positive = Field(default=0.5, alias="lambda")
    bidirectional: bool = True


class PpsOptions(_Frozen):
    """Probability prompt selector (method section 2.3).

    Attributes:
        train: How a training query gets its prompt.
        eval: The same in evaluation; exported models need a mode other than ``sample``.
        temperature: Factor on the scores before the softmax.
        detach_probs: Stop the gradient at the probabilities; matters for ``expectation`` alone.
    """

    train: PromptMode = "sample"
    eval: PromptMode = "argmax"
    temperature: Positive = 200.0
    detach_probs: bool = True


class DistilOptions(_Frozen):
    """Mutual distillation between the two views (method section 2.8).

    Attributes:
        direction: Who teaches; one-way directions are named by their teacher.
        conditions: Comparisons a query must pass to be taught on: text (t), visual (v), both or none.
        text_token: Token compared as the text part: the prompt (paper) or the first frame (official code).
        detach_teacher: Stop the gradient at the teacher's distribution.
        detach_weights: Stop the gradient at the reliability weights.
    """

    direction: Literal["mutual", "local_teaches", "global_teaches"] = "mutual"
    conditions: tuple[Literal["t", "v"], ...] = ("t", "v")
    text_token: Literal["prompt", "first_frame"] = "prompt"
    detach_teacher: bool = True
    detach_weights: bool = True


class M2dfLossOptions(_Frozen):
    """Weights of the M2DF loss (method section 2.9); ``reduction`` is that of the cross entropies."""

    reduction: Literal["sum", "mean"] = "sum"
    lambda_text: Weight = 0.0
    lambda_ce: Weight = 1.0
    lambda_distil: Weight = 1.0


class ClipFsarLossOptions(_Frozen):
    """Weights of the CLIP-FSAR loss (method section 3.3); ``lambda_text`` is V: 1.2 to 3.0 by dataset."""

    reduction: Literal["sum", "mean"] = "mean"
    lambda_text: Weight = 1.5
    lambda_ce: Weight = 1.0


class DropoutOptions(_Frozen):
    """Dropout rates of the fusion encoder: after the attention, inside the feed-forward."""

    attention: Rate = 0.2
    ffn: Rate = 0.05


class M2dfDropoutOptions(DropoutOptions):
    """Those, and the rate inside the global context."""

    context: Rate = 0.1


class PrototypeOptions(_Frozen):
    """When the shots of a class are averaged: ``after`` the fusion encoder or ``before`` it."""

    merge: Literal["after", "before"] = "after"


class TextVisualFusionOptions(_Frozen):
    """CLIP-FSAR's test-time use of the text (method section 3.4).

    Attributes:
        mode: ``off`` matches frames only, ``combine`` gives beta*log p_text + (1-beta)*log p_visual,
            ``text`` ignores the prototypes.
        beta: Share of the text.
    """

    mode: Literal["off", "combine", "text"] = "off"
    beta: Probability = 0.9

    @field_validator("mode", mode="before")
    @classmethod
    def _off_in_yaml(cls, value: object) -> object:
        return "off" if value is False else value  # YAML 1.1 reads a bare `off` as false

    @property
    def enabled(self) -> bool:
        """Whether the text takes part in the logits."""
        return self.mode != "off"


class AppearanceOptions(_Frozen):
    """Numbers of a frame that show how it looks, beside those that text is aligned with.

    They are compared as they are, without text, fusion or order: by the cosine of their means over a clip's frames.

    Attributes:
        dim: How many of the D numbers they are, the last ones (A); 0 for a tower that has none.
        weight: What a distance of 1 between appearances takes from the logits, shared by the views.
    """

    dim: int = Field(default=0, ge=0)
    weight: Weight = 0.0


class MatchOptions(_Frozen):
    """What every head's matching has.

    Attributes:
        appearance: The part of features that is no part of the papers' methods.
        otam: The alignment.
        cos_eps: Added to the product of norms in every cosine.
        otam_weight: Weight of OTAM in a view's distance.
        mean_weight: Weight of the distance of time-averaged frames, on OTAM's scale; 0 is the papers' method.
    """

    appearance: AppearanceOptions = AppearanceOptions()
    otam: OtamOptions = OtamOptions()
    cos_eps: Weight = 0.01
    otam_weight: Weight = 1.0
    mean_weight: Weight = 0.0

    @model_validator(mode="after")
    def _match_with_something(self) -> MatchOptions:
        if self.otam_weight == 0 and self.mean_weight == 0:
            raise ValueError("otam_weight and mean_weight are both 0: nothing to match with")
        return self


class _FusionOptions(MatchOptions):
    depth: int = Field(default=1, ge=1)
    ffn_dim: int = Field(default=2048, ge=1)
    heads: int = Field(default=8, ge=1)
    dropout: DropoutOptions = DropoutOptions()


class M2dfOptions(_FusionOptions):
    """CLIP-M2DF: two views, prompt selector, mutual distillation.

    Attributes:
        pps: Prompt selector.
        topk_frames: Frames that count in a text-video score.
        view_weights: Weights of the local and global distances in the logits.
        dropout: Dropout rates.
        distil: Mutual distillation.
        loss: Loss weights.
    """

    dropout: M2dfDropoutOptions = M2dfDropoutOptions()
    pps: PpsOptions = PpsOptions()
    topk_frames: int = Field(default=4, ge=1)
    view_weights: tuple[Weight, Weight] = (1.0, 1.0)
    distil: DistilOptions = DistilOptions()
    loss: M2dfLossOptions = M2dfLossOptions()


class ClipFsarOptions(_FusionOptions):
    """CLIP-FSAR: one view, text appended to the support frames.

    Attributes:
        prototype: When shots are averaged.
        text_visual_fusion: Use of the text at test time.
        loss: Loss weights.
    """

    prototype: PrototypeOptions = PrototypeOptions()
    text_visual_fusion: TextVisualFusionOptions = TextVisualFusionOptions()
    loss: ClipFsarLossOptions = ClipFsarLossOptions()


class TrainingFreeOptions(MatchOptions):
    """A head without weights, for a pretrained CLIP as it comes.

    Attributes:
        logit_scale: CLIP's learned temperature, 100 in every released model.
        beta: Share of the text in the logits.
    """

    logit_scale: Positive = 100.0
    beta: Probability = 0.3


HeadOptions = M2dfOptions | ClipFsarOptions | TrainingFreeOptions

HEAD_OPTIONS: dict[str, type[HeadOptions]] = {
    "m2df": M2dfOptions,
    "clip-fsar": ClipFsarOptions,
    "training-free": TrainingFreeOptions,
}


def head_options(name: HeadName, values: Mapping[str, Any] | None = None) -> HeadOptions:
    """Options of the named head from plain values, as a recipe or a manifest holds them.

    Raises:
        ValueError: Unknown head.
        pydantic.ValidationError: Unknown or impossible option.
    """
    if name not in HEAD_OPTIONS:
        raise ValueError(f"no head is called {name!r}; there are {', '.join(HEAD_OPTIONS)}")
    return HEAD_OPTIONS[name].model_validate(dict(values or {}))
