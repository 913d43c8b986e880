"""The report as one HTML page: collects what the sections show and fills the template."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from m2df_runtime import __version__
from m2df_runtime.files import atomic_write
from m2df_runtime.progress import Progress, silent
from m2df_train.evaluation.clips import EpisodeOptions, SplitClips
from m2df_train.evaluation.compare import RESAMPLES
from m2df_train.evaluation.episode_run import Answers
from m2df_train.evaluation.models import Encoded
from m2df_train.model.run_folder import BEST
from m2df_train.report.sections import Rival, fill_examples, fill_projection, fill_sweep, training_free_rival
from m2df_train.report.sweep import EPISODES, Effect
from m2df_train.report.tables import CONFUSION_CLASSES, ClassRow, differences, facts, shot_tables
from m2df_train.report.template import environment
from m2df_train.report.tested import Drawn, Tested

_SHORT = 16  # letters of a name that fit the head of a column
TITLES = {
    "accuracy": "Accuracy",
    "classes": "Classes",
    "confusion": "Confusions",
    "tsne": "Before and after fusion",
    "attention": "Attention in fusion",
    "looks": "Where the model looks",
    "sweep": "Options of the matching",
}


def report_on(
    path: Path,
    source: object,
    clips: SplitClips,
    options: EpisodeOptions,
    encoded: Sequence[Encoded],
    answers: Sequence[Sequence[Answers]],
    progress: Progress = silent,
) -> None:
    """Write the report of what `m2df-eval` has measured: of one model, or of the second of two against the first.

    Args:
        path: The HTML file; `check_report` tells beforehand whether it can be written.
        source: Name of the benchmark or folder; None for generated actions.
        clips: The clips, with those that could not be read.
        options: How episodes were drawn.
        encoded: The models and their features.
        answers: For every number of shots, those of every model.
        progress: Shows what is computed.

    Raises:
        InputError: A clip cannot be read any more.
        OSError: The file cannot be written.
    """
    read = set(encoded[0].features.names)
    data = f"{source or 'generated actions'}{f', {clips.split} split' if clips.split else ''}"
    drawn = Drawn(data, [clip for clip in clips.clips if clip.name in read], options)
    *others, model = (
        Tested(_name(item.subject.path), item, tuple(of_models[place] for of_models in answers))
        for place, item in enumerate(encoded)
    )
    _write(path, model, drawn, others[0] if others else None, progress)


def _name(path: Path) -> str:
    """A model's own name: of a checkpoint file, its run's."""
    own = path.resolve()
    return own.parent.name if own.name == BEST else own.name


def _write(path: Path, model: Tested, drawn: Drawn, other: Tested | None, progress: Progress) -> None:
    """Look into a model, beside another one, or beside the training-free head on its own features."""
    short, rival = "model", None
    if other is None:
        rival = training_free_rival(model, drawn, progress)
    else:
        short, of_other = _short(model.name, other.name)
        paths = model.encoded.subject.path, other.encoded.subject.path
        what = f"{short} is {paths[0]}, {of_other} is {paths[1]}. What follows the tables looks into {short}."
        rival = Rival(of_other, what, other.answers)
    values = {
        **_overview(model, drawn, other, rival, short),
        **fill_projection(model, drawn, progress),
        **fill_examples(model, drawn, progress),
        **fill_sweep(model, drawn, progress),
    }
    atomic_write(path, _render(values).encode())


def _overview(model: Tested, drawn: Drawn, other: Tested | None, rival: Rival | None, short: str) -> dict[str, Any]:
    """What the head of the page and the tables of answers show."""
    seed = drawn.options.seed
    rivals = rival.answers if rival else (None,) * len(model.answers)
    shots = [shot_tables(own, of_rival, drawn.names, seed) for own, of_rival in zip(model.answers, rivals, strict=True)]
    of_model = facts(model.encoded.subject)
    return {
        "name": model.name,
        "short": short,
        "rival": rival,
        "rival_reason": "this model is the training-free head itself; name a second one with --compare.",
        "differing": differences(of_model, facts(other.encoded.subject)) if other else None,
        "data": drawn.data,
        "clips": len(drawn.clips),
        "classes": len(set(drawn.labels)),
        "options": drawn.options,
        "summary": _summary(of_model, drawn, model),
        "shots": shots,
    }


def _summary(of_model: dict[str, str], drawn: Drawn, model: Tested) -> list[tuple[str, str]]:
    o, skipped = drawn.options, model.encoded.features.skipped
    rows = [("model", str(model.encoded.subject.path))]
    rows += [(key, of_model[key]) for key in ("head", "backbone", "recipe", "run by") if of_model.get(key, "–") != "–"]
    rows.append(("episodes", f"{o.episodes:,} per number of shots, seed {o.seed}"))
    if o.groups is not None:
        rows.append(("groups", f"{o.groups}: no group is support and query of one episode"))
    excluded = {name: count for answers in model.answers for name, count in answers.excluded.items()}
    if excluded:
        rows.append(("too few clips", ", ".join(f"{name} ({count})" for name, count in excluded.items())))
    if skipped:
        rows.append(("unreadable clips", ", ".join(skipped)))
    return rows


def _short(model: str, other: str) -> tuple[str, str]:
    """Names for the heads of tables: the models' own where they are short and differ, else letters."""
    own = model != other and max(len(model), len(other)) <= _SHORT
    return (model, other) if own else ("B", "A")


def _render(values: dict[str, Any]) -> str:
    templates = environment()
    templates.filters |= {
        "sign": _sign,
        "effect_sign": lambda effect: _sign(effect.difference, _reach(effect)),
        "zip_rows": lambda names, rows: zip(names, rows, strict=True),
        "gain_bar": _gain_bar,
        "cell": _cell,
    }
    page = templates.get_template("page.html.j2")
    return page.render(
        **values,
        titles=TITLES,
        resamples=RESAMPLES,
        sweep_episodes=min(EPISODES, values["options"].episodes),
        matrix_limit=CONFUSION_CLASSES,
        version=__version__,
    )


def _sign(value: float, reach: float) -> str:
    """Class of a number whose interval leaves out zero."""
    return "" if abs(value) <= reach else "better" if value > 0 else "worse"


def _reach(effect: Effect) -> float:
    """How far the interval goes from the difference towards zero."""
    low, high = effect.interval
    return effect.difference - low if effect.difference > 0 else high - effect.difference


def _gain_bar(gain: float, rows: Sequence[ClassRow]) -> Markup:
    """A bar from the middle of its cell; the largest gain of the table, either way, fills half."""
    largest = max(abs(row.gain or 0.0) for row in rows) or 1.0
    width = 50 * abs(gain) / largest
    left = 50.0 if gain >= 0 else 50 - width
    kind = "" if gain >= 0 else ' class="worse"'
    return Markup(f'<i{kind} style="left:{left:.1f}%;width:{width:.1f}%"></i>')


def _cell(share: float, own: bool) -> Markup:
    """Attributes of a cell of the confusion matrix."""
    kinds = " ".join(name for name, on in (("own", own), ("strong", share > 75)) if on)
    kind = f' class="{kinds}"' if kinds else ""
    return Markup(f'{kind} style="--v:{0.9 * share / 100:.2f}"')
