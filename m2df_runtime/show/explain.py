"""Why an answer is what it is, as a page: what decides between the best two classes, and which frames are alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from m2df_runtime.match.matcher import Matcher
from m2df_runtime.match.results import Prediction
from m2df_runtime.show.alignment_figure import Strip, cost_grid, strips_with_ties
from m2df_runtime.show.explanation import ExplainedClass, Explanation, explanation
from m2df_runtime.show.page import bar, block, legend, number, row, signed, sum_row, table, text, whole_page
from m2df_runtime.show.parts import Terms

_LISTED = 5  # classes in the first table
_WORTH = 0.1  # share of a lead from which what speaks against it is said
_KINDS = {
    "aligned": "frames in order",
    "means": "the clip as a whole",
    "looks": "appearance",
    "undecided": "discount for loose timing",
    "text": "text",
}
_SAID = {
    "aligned": "frame by frame and in order, the clip is more like",
    "means": "as a whole, whatever the order, the clip is more like",
    "looks": "its frames look more like",
    "undecided": "its frames can be aligned in more ways with",
    "text": "its frames fit better with the text of",
}
_HOW_TO_READ = (
    (
        "Distance",
        "How much a clip differs from a class; smaller is more alike. It can be negative, because of the discount. "
        "Only distances of the same bank compare.",
    ),
    (
        "Frames in order",
        "The model looks at some frames of each clip and pairs those of the query with those of the class, going "
        "forward in time only. A pair costs 1 - cos of its two frames: 0 where they are alike, 1 where they have "
        "nothing in common. This is the expected cost of all pairs (OTAM).",
    ),
    (
        "Discount for loose timing",
        "Minus λ times the entropy of the alignment. The more ways of pairing the frames cost about the same, the "
        "larger the discount. It is nearly the same for all classes.",
    ),
    ("The clip as a whole", "1 - cos of the mean frames, times the length of an alignment. It ignores the order."),
    ("Appearance", "1 - cos of the means of what shows how frames look, for models that have it."),
    (
        "Frames of a class",
        "A class is the mean of its support clips, after the model has put each in its context. The strip shows the "
        "one clip that is most like the query.",
    ),
    (
        "Lines and dots",
        "The thicker a line or the larger a dot, the more of the alignment goes there: the gradient of OTAM's soft "
        "minimum. The orange line is the cheapest single alignment; where it is dashed too, the same with the roles of "
        "query and class swapped.",
    ),
)


def explain(prediction: Prediction, matcher: Matcher) -> str:
    """A page that shows why an answer is what it is: one HTML file without scripts and links, at most 2 MB.

    Args:
        prediction: An answer of this matcher. With `frames` (`predict(clip, look=...)`) the page shows them.
        matcher: With the bank that the answer is from.

    Raises:
        InputError: The answer has no features, as on a GPU without `look`, or is from another bank than the matcher
            has now.
        ClipError: Its scores are not finite.

    Examples:
        >>> import m2df_runtime as m2df
        >>> from m2df_runtime.show.filmstrip import display_spec
        >>> model = m2df.load()
        >>> matcher = m2df.Matcher(model, m2df.SupportBank.of(model, "actions"))
        >>> answer = matcher.predict("clip.mp4", look=display_spec(model.bundle.manifest.clip))
        >>> page = m2df.explain(answer, matcher)
        >>> page.startswith("<!doctype html>"), len(page) < 2_000_000
        (True, True)
    """
    found = explanation(prediction, matcher)
    name = Path(prediction.query).name
    return whole_page(f"{prediction.answer}: {name}", _page(found, name))


def _page(found: Explanation, name: str) -> Iterator[str]:
    prediction = found.prediction
    kind = ' class="bad"' if prediction.rejected else ""
    yield f"<header><small>{text(name)}</small><h1{kind}>{text(prediction.answer)}</h1></header>"
    yield f'<p class="lead">{lead_sentence(found)}</p>'
    if found.problem:
        before = "" if found.matching else "The distances cannot be taken apart: "
        yield f'<p class="note">{before}{text(found.problem)}.</p>'
    query = Strip.of("query", prediction.frames, _frames(found))
    yield query.symbol()
    for place, one in enumerate(found.shown):
        nearest = "Nearest" if prediction.rejected else "Best"
        yield f"<h2>{nearest if place == 0 else 'Second'}: {text(one.score.label)}, frame by frame</h2>"
        yield from strips(found, one, query, f"class{place}")
    yield from _classes(found)
    yield "<h2>Distances on one scale</h2>"
    yield from distances(found)
    if found.matching and found.second and not prediction.rejected:
        yield "<h2>What decides</h2>"
        yield from decision(found)
    for one in found.shown if found.matching else ():
        yield f"<h2>All pairs of frames: {text(one.score.label)}</h2>"
        yield from _grids(found, one)
    yield _numbers(found)
    yield how_to_read()
    yield f"<p><small>Rejection: {text(found.about_rejection)}.</small></p>"


def how_to_read() -> str:
    """What the figures show, as HTML."""
    entries = "".join(f"<dt>{name}</dt><dd>{said}</dd>" for name, said in _HOW_TO_READ)
    return f"<section><h2>How to read this page</h2><dl>{entries}</dl></section>"


def lead_sentence(found: Explanation) -> str:
    """Why this label, what was second, and what decides between them, as HTML."""
    prediction, best = found.prediction, found.best.score
    second = found.second.score if found.second else None
    label = f"<b>{text(best.label)}</b>"
    if prediction.rejected and prediction.threshold is not None:
        return (
            f"It is none of the actions that were taught. The nearest is {label}, at a distance of "
            f"{number(best.distance)}; up to {number(prediction.threshold)} it would have been taken for one. "
            "Smaller is nearer."
        )
    if prediction.rejected:
        return (
            f"No action is sure enough. The most probable is {label} with {prediction.probability:.1%}, and answers "
            f"are rejected {text(found.about_rejection)}."
        )
    said = f"Of {len(prediction.classes)} actions, {label} fits best ({prediction.probability:.1%})."
    if second is None:
        return said + " The bank has no other action."
    said += f" Second is {text(second.label)} ({second.probability:.1%})."
    if not found.matching:
        return said
    kinds = _by_kind(sum(found.lead(), Terms()))
    ahead = {kind: value for kind, value in kinds.items() if value > 0}
    behind = {kind: -value for kind, value in kinds.items() if value < 0}
    if not ahead:
        return said
    most = max(ahead, key=lambda kind: ahead[kind])
    share = ahead[most] / sum(ahead.values())
    how = "What decides between the two" if share > 0.9 else f"What decides most between the two ({share:.0%})"
    said += f" {how}: {_SAID[most]} {text(best.label)}."
    if behind and sum(behind.values()) > _WORTH * sum(ahead.values()):
        least = max(behind, key=lambda kind: behind[kind])
        said += f" For {text(second.label)} speaks that {_SAID[least]} it."
    return said


def _by_kind(terms: Terms) -> dict[str, float]:
    return {one.name: getattr(terms, one.name) for one in fields(Terms)}


def _frames(found: Explanation) -> int:
    features = found.prediction.features
    assert features is not None
    return len(features)


def _classes(found: Explanation) -> Iterator[str]:
    """The most probable classes as bars."""
    prediction = found.prediction
    yield "<section><h2>The actions</h2>"
    for place, score in enumerate(prediction.classes[:_LISTED]):
        kind = ("rejected" if prediction.rejected else "accent") if place == 0 else "other"
        label = f"{score.label}: probability {score.probability:.1%}, distance {number(score.distance)}"
        drawn = bar(label, (block("track", 0, 100), block(kind, 0, 100 * score.probability)))
        yield row(text(score.label), drawn, f"{score.probability:.1%}")
    left = len(prediction.classes) - _LISTED
    more = f" {left} less probable {'one is' if left == 1 else 'ones are'} not listed." if left > 0 else ""
    label, prompt, share = found.chosen
    yield f"<p><small>{_about_text(found, label, prompt, share)}{more}</small></p></section>"


def _about_text(found: Explanation, label: str, prompt: str, share: float) -> str:
    said = f"The text that fits the clip best is “{text(prompt)}” of {text(label)} ({share:.1%})."
    if found.matching is None:
        return said
    if found.matching.text_factor:
        return f"{said} Text is a part of this answer."
    return f"{said} Text helps to read the frames; it is no term of the distances."


def decision(found: Explanation) -> Iterator[str]:
    """What the best class is ahead of the second by, as bars to the right and to the left."""
    if not (found.matching and found.second):
        return
    lead = found.lead()
    best, second = text(found.best.score.label), text(found.second.score.label)
    kinds = [kind for kind in _KINDS if any(getattr(one, kind) for one in lead)]
    values = [getattr(one, kind) for one in lead for kind in kinds]
    low, high = min(0.0, *values, 0.0), max(0.0, *values, 1e-9)
    total = sum(one.total for one in lead)
    yield f"<p>To the right speaks for <b>{best}</b>, to the left for {second}.</p><figure>"

    def at(value: float) -> float:
        return float(100 * (value - low) / (high - low))

    for kind in kinds:
        own = [getattr(one, kind) for one in lead[:-1]] if kind != "text" else [lead[-1].text]
        height = 18 / len(own)
        shapes = [block("track", 0, 100)]
        shapes += [
            block(f"{kind} later" if place else kind, at(0), at(value), 2 + place * height, height - (len(own) > 1))
            for place, value in enumerate(own)
        ]
        shapes.append(f'<line class="axis" x1="{at(0):.2f}%" x2="{at(0):.2f}%" y1="0" y2="22"/>')
        yield row(_KINDS[kind], bar(f"{_KINDS[kind]}: {signed(sum(own))}", shapes), signed(sum(own)))
    yield sum_row("together", signed(total))
    views = f" Upper bars: {found.view_names[0]}; lower: {found.view_names[1]}." if len(found.view_names) == 2 else ""
    divided = f" divided by {found.temperature:.3g}" if found.temperature != 1 else ""
    said = f"In units of the logits. The probability is the softmax of logits{divided}."
    yield f"<figcaption>{said}{views}</figcaption></figure>"


def distances(found: Explanation) -> Iterator[str]:
    """The distances of the classes on one scale, as what they are made of, with the threshold."""
    threshold = found.prediction.threshold
    sums = [found.terms(one) for one in found.shown]
    starts = [one.undecided for one in sums] if found.matching else [one.score.distance for one in found.shown]
    ends = [one.score.distance for one in found.shown]
    marks = [*starts, *ends, *([threshold] if threshold is not None else [])]
    low, high = min(marks), max(marks)
    low, high = low - 0.02 * (high - low) - 1e-9, high + 0.04 * (high - low) + 1e-9

    def at(value: float) -> float:
        return 100 * (value - low) / (high - low)

    yield f"<p>{_about_scale(found)}</p><figure>"
    for one, terms, start in zip(found.shown, sums, starts, strict=True):
        shapes = [block("track", 0, 100)]
        for kind in ("aligned", "means", "looks"):
            for place, view in enumerate(one.views):
                value = getattr(view.terms, kind)
                shapes.append(block(f"{kind} later" if place % 2 else kind, at(start), at(start + value)))
                start += value
        if not found.matching:
            shapes.append(block("accent", at(start) - 0.4, at(start) + 0.4))
        if threshold is not None:
            shapes.append(f'<line class="mark" x1="{at(threshold):.2f}%" x2="{at(threshold):.2f}%" y1="0" y2="22"/>')
        distance = number(one.score.distance)
        made = ", ".join(f"{_KINDS[kind]} {number(value)}" for kind, value in _by_kind(terms).items() if value)
        label = f"{one.score.label}: distance {distance}{f', which is {made}' if made else ''}"
        yield row(text(one.score.label), bar(label, shapes), distance)
    used = [kind for kind in ("aligned", "means", "looks") if any(getattr(one, kind) for one in sums)]
    entries = [(kind, _KINDS[kind]) for kind in used]
    if found.matching and len(found.view_names) == 2:
        entries = [(kind, f"{name}, {found.view_names[0]} (lighter: {found.view_names[1]})") for kind, name in entries]
    if threshold is not None:
        entries.append(("inked", f"dashed line: the threshold, {number(threshold)}"))
    yield f"{legend(entries)}</figure>"


def _about_scale(found: Explanation) -> str:
    said = "Smaller is more alike. "
    if found.matching:
        said += "Each bar begins at the discount for loose timing. Costs make it longer, and it ends at the distance. "
    threshold = found.prediction.threshold
    if threshold is None:
        return said + "No distance is rejected here."
    best = found.best.score
    side = "beyond the threshold, so the answer is unknown" if found.prediction.rejected else "within the threshold"
    return f"{said}{text(best.label)} is {side}: {number(best.distance)} against {number(threshold)}."


def strips(found: Explanation, one: ExplainedClass, query: Strip, id_: str) -> Iterator[str]:
    """The query's frames and those of a class's nearest clip, with the alignment between them."""
    other = Strip.of(id_, one.frames, query.frames)
    yield other.symbol()
    views = [*zip(found.view_names, one.views, strict=False)]
    label = f"Frames of {Path(found.prediction.query).name} and of {one.nearest}. " + " ".join(
        f"{name or 'Alignment'}: {_pairs(view.hard)}." for name, view in views if view.hard
    )
    yield f"<figure>{strips_with_ties(query, other, views, label)}<figcaption>"
    rows = "Top and bottom: the query; middle" if len(views) == 2 else "Top: the query; bottom"
    label = text(one.score.label)
    which = f"the most like it of the {one.clips} clips of {label}" if one.clips > 1 else f"the clip of {label}"
    yield f"{rows}: {text(one.nearest)}, {which}. "
    if one.unseen:
        yield f"Its frames cannot be shown: {text(one.unseen)}. "
    if query.uri is None:
        yield "The frames of the query were not kept. "
    if any(view.hard for view in one.views):
        yield "Blue: how far frames are paired; orange: the cheapest single alignment."
    yield "</figcaption></figure>"


def _pairs(paths: tuple[tuple[tuple[int, int], ...], ...]) -> str:
    """The cheapest alignment in words."""
    return ", ".join(f"{i + 1} with {j + 1}" for i, j in paths[0])


def _grids(found: Explanation, one: ExplainedClass) -> Iterator[str]:
    if not one.views:
        return
    highest = max(float(view.costs.max()) for shown in found.shown for view in shown.views)
    yield '<div class="grids">'
    for name, view in zip(found.view_names, one.views, strict=True):
        said = ", ".join(f"{_KINDS[kind]} {number(value)}" for kind, value in _by_kind(view.terms).items() if value)
        whole = f"{name + ': ' if name else ''}{said}; together {number(view.terms.total)}"
        yield f"<figure>{cost_grid(view, highest, f'Costs of all pairs of frames, {one.score.label}. {whole}')}"
        yield (
            f"<figcaption>{text(whole[:1].upper() + whole[1:])}. Rows: the frames of the query; columns: those of "
            f"{text(one.score.label)}. Darkest: {number(highest)}.</figcaption></figure>"
        )
    yield "</div>"


def _numbers(found: Explanation) -> str:
    """All terms of both distances."""
    if not found.matching:
        return ""
    sums = [found.terms(one) for one in found.shown]
    kinds = [kind for kind in _KINDS if any(getattr(one, kind) for one in sums)]
    head, columns = [""], []
    for one in found.shown:
        for name, view in zip(found.view_names, one.views, strict=True):
            head.append(text(one.score.label) + (f"<br>{text(name)}" if name else ""))
            columns.append(view.terms)
    rows = [[_KINDS[kind], *(number(getattr(column, kind), 4) for column in columns)] for kind in kinds]
    rows.append(["distance", *(number(column.total, 4) for column in columns)])
    factors = ", ".join(number(factor, 3) for factor in found.matching.view_factors)
    said = (
        f"The parts add up to the distance that the model's graph gives, within {100 * max(found.error, 1e-6):.1g} %. "
    )
    if set(found.matching.view_factors) == {-1.0}:
        said += "The logit is minus the distance"
    else:
        said += f"In the logit the distance of a view counts {factors}"
    if found.matching.text_factor and found.second:
        texts = ", ".join(f"{text(one.score.label)} {one.selected:.2g}" for one in found.shown)
        said += f", and the logarithm of the probability of the text ({texts}) {number(found.matching.text_factor)}"
    return f"<section><h2>In numbers</h2>{table(head, rows, 1)}<p><small>{said}.</small></p></section>"
