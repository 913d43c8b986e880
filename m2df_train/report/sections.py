"""What the sections of the page show, as values for the template."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup

from m2df_runtime.progress import Progress
from m2df_train.evaluation.episode_run import Answers
from m2df_train.evaluation.torch_scorer import HeadScorer
from m2df_train.model.heads import ClipFsarHead, M2dfHead, TrainingFreeHead
from m2df_train.report import figures
from m2df_train.report.attention import fusion_attention
from m2df_train.report.examples import Example, choose_examples
from m2df_train.report.occlusion import occlusion
from m2df_train.report.projection import project
from m2df_train.report.sweep import settings, sweep
from m2df_train.report.tables import facts
from m2df_train.report.tested import Drawn, Tested, answers_of

BUNDLE = "{} needs the modules of the model; a bundle holds exported graphs. Name its checkpoint with --checkpoint."
NO_FUSION = "the head of this model encodes nothing, it matches the features of the image tower as they are."


@dataclass(frozen=True)
class Rival:
    """What the model is compared with.

    Attributes:
        short: Its name in tables.
        what: A sentence on what it is.
        answers: Its answers, one per number of shots.
    """

    short: str
    what: str
    answers: tuple[Answers, ...]


def training_free_rival(model: Tested, drawn: Drawn, progress: Progress) -> Rival | None:
    """The training-free head on the model's features; None where the model is that already."""
    if _head_name(model) == "training-free":
        return None
    _, frames, dim = model.encoded.features.values.shape
    head = HeadScorer(TrainingFreeHead(dim, frames), torch.device("cpu"))
    with progress("report: training-free head", drawn.options.episodes * len(model.answers)) as advance:
        answers = tuple(
            answers_of(head, model.encoded, drawn, measured.shot, episodes=len(measured.classes), advance=advance)
            for measured in model.answers
        )
    what = "The training-free head matches the same features of the image tower without any trained part."
    return Rival("training-free", what, answers)


def fill_projection(model: Tested, drawn: Drawn, progress: Progress) -> dict[str, Any]:
    """Section `tsne`."""
    with progress("report: t-SNE"):
        found = project(model, drawn)
    panels = [
        {
            "title": panel.title,
            "nearest": panel.nearest,
            "silhouette": panel.silhouette,
            "svg": Markup(figures.scatter(panel, found.owner, f"tsne{number}")),
        }
        for number, panel in enumerate(found.panels)
    ]
    legend = [{"name": n, "colour": figures.COLOURS[i % len(figures.COLOURS)]} for i, n in enumerate(found.classes)]
    reason = None
    if model.checkpoint is None:
        reason = BUNDLE.format("The map after fusion")
    elif len(panels) == 1:
        reason = f"after fusion there is nothing to map: {NO_FUSION}"
    selects = model.checkpoint is not None and isinstance(model.checkpoint.head, M2dfHead)
    return {"projection": found, "panels": panels, "legend": legend, "projection_reason": reason, "selects": selects}


def fill_examples(model: Tested, drawn: Drawn, progress: Progress) -> dict[str, Any]:
    """Sections `attention` and `looks`, which show the same clips."""
    chosen = choose_examples(model, drawn)
    with progress("report: where the model looks", len(chosen)) as advance:
        examples = []
        for number, example in enumerate(chosen):
            examples.append(_example(model, example, number))
            advance(1)
    wrong = any(example.answer != example.label for example in chosen)
    which = (
        f"The clips are the first queries of different classes in the {model.answers[0].shot}-shot episodes that were"
    )
    return {
        "examples": examples,
        "example_note": f"{which} answered rightly{' and wrongly' if wrong else ''}: chosen by that rule, not by eye.",
        "motion": model.encoded.subject.spec.channels == "motion",
        "columns": min(8, model.encoded.subject.spec.frames),
        "narrow_columns": min(4, model.encoded.subject.spec.frames),
        **_attention_words(model),
    }


def fill_sweep(model: Tested, drawn: Drawn, progress: Progress) -> dict[str, Any]:
    """Section `sweep`."""
    if model.checkpoint is None:
        return {"sweep": None, "sweep_reason": BUNDLE.format("Changing options of the matching")}
    rows = settings(model.checkpoint.head)
    with progress("report: options of the matching", len(rows) * len(model.answers)) as advance:
        found = sweep(model, drawn, rows, advance)
    topics = itertools.groupby(found, key=lambda item: item[0].topic)
    return {"sweep": [(topic, list(group)) for topic, group in topics], "sweep_reason": None}


def _example(model: Tested, example: Example, number: int) -> dict[str, Any]:
    scorer = model.encoded.subject.scorer
    prototypes = scorer.batch_prototypes(example.support, example.prompts)
    found = occlusion(scorer, example.pixels, example.prompts, prototypes)
    overlays = figures.overlays(example.frames, found)
    maps = []
    if model.checkpoint is not None:
        head = model.checkpoint.head
        for place, item in enumerate(fusion_attention(head, example.features, example.prompts, example.own)):
            svg = Markup(figures.attention(item, example.frames, f"attention{number}-{place}"))
            maps.append({"title": item.title, "largest": 100 * item.weights.max(), "svg": svg})
    return {
        "name": example.name,
        "label": example.label,
        "answer": example.answer,
        "classes": example.classes,
        "runner_up": example.classes[found.runner_up],
        "margin": found.margin,
        "largest": float(found.effect.max()),
        "smallest": float(found.effect.min()),
        "pairs": [
            {"frame": figures.picture(frame), "overlay": figures.picture(overlay)}
            for frame, overlay in zip(example.frames, overlays, strict=True)
        ],
        "maps": maps,
    }


def _attention_words(model: Tested) -> dict[str, Any]:
    words: dict[str, Any] = {"attention_reason": None, "attention_note": "", "heads": 0, "even": ""}
    if model.checkpoint is None:
        return {**words, "attention_reason": BUNDLE.format("Attention")}
    head = model.checkpoint.head
    if isinstance(head, M2dfHead):
        note = (
            "A view's rows are its temporal context, its columns the frames as they are. "
            "The prompt is the one chosen for the clip as a query."
        )
        return {**words, "attention_note": note, "heads": head.options.heads, "even": f"{100 / (head.frames + 1):.0f}"}
    if isinstance(head, ClipFsarHead):
        note = "As a support clip it comes with the text of its class."
        even = f"{100 / head.frames:.0f} or {100 / (head.frames + 1):.0f}"
        return {**words, "attention_note": note, "heads": head.options.heads, "even": even}
    return {**words, "attention_reason": NO_FUSION}


def _head_name(model: Tested) -> str:
    """Registry name of the head, of a bundle too."""
    return facts(model.encoded.subject).get("head", "")
