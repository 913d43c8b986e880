"""Episode accuracy of a bundle beside descriptors that need no training, on the same episodes of the same clips.

    python -m benchmarks.accuracy --data clips --groups '_(person[0-9]+)_' --name people
    python -m benchmarks.accuracy --open-set 5 --name generated_open

All subjects see the same motion crops and answer the same queries, so their difference is paired: its interval is
much narrower than those of the two accuracies.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.descriptors import HISTORY_CLIP, HOG_CLIP, Descriptor, describe, mean_cosine
from benchmarks.frozen_tower import CHANGE_CLIP, COLOUR_CLIP, frozen_features
from benchmarks.record import RESULTS, Machine, write
from benchmarks.ruled import described, ruled
from m2df_runtime.backends.model import Model
from m2df_runtime.bundle.prompt_texts import ClassTexts, prompt_embeddings, read_labels
from m2df_runtime.commands.console import main_entry, progress
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.load import load_clip
from m2df_train.data.clips import LabelledClip, clip_groups, folder_clips, generated_clips
from m2df_train.data.episodes import EpisodeIndices, EpisodeSampler
from m2df_train.evaluation.open_set import OpenAnswers, open_set
from m2df_train.evaluation.torch_scorer import HeadScorer
from m2df_train.model.heads import build_head

Float = NDArray[np.float32]
MODEL = "bundle"


class Given(NamedTuple):
    """The class that each query of an episode is given, of the first `way`, and its distance; both [(W + U) * Q].

    Queries stand in the order of their classes.
    """

    classes: NDArray[np.int64]
    distances: NDArray[np.float64]


# From an episode and how many of its classes are known to what its queries are given.
Answer = Callable[[EpisodeIndices, int], Given]


def model_answers(session: Model, clips: Sequence[LabelledClip], texts: ClassTexts) -> dict[str, Answer]:
    """Encode the clips with a bundle and answer by its support and query graphs, and by the training-free head."""
    spec, rules = session.bundle.manifest.clip, session.bundle.manifest.text.rules.over(texts)
    names = list(dict.fromkeys(clip.label for clip in clips))
    prompts = prompt_embeddings(map(rules.prompts, names), session.encode_texts)
    with progress("encoding", len(clips)) as advance:
        features = []
        for clip in clips:
            features.append(session.encode_clips(load_clip(clip.open(), spec)[None])[0])
            advance(1)
    values = np.stack(features)  # (N, T, D)

    def answer_of(scorer: Model | HeadScorer) -> Answer:
        def answer(episode: EpisodeIndices, way: int) -> Given:
            pairs = zip(episode.classes[:way].tolist(), episode.support[:way], strict=True)
            prototypes = np.stack([scorer.prototypes(values[chosen], prompts[c : c + 1]) for c, chosen in pairs])
            scores = scorer.match(values[episode.query.ravel()], prompts[episode.classes[:way]], prototypes)
            return _given(scores.distances.sum(axis=1), scores.logits.argmax(axis=1))

        return answer

    untrained = HeadScorer(build_head("training-free", values.shape[-1], values.shape[1]), torch.device("cpu"))
    return {MODEL: answer_of(session), "its tower, training-free head": answer_of(untrained)}


def _given(distances: Float, classes: NDArray[np.int64]) -> Given:
    return Given(classes, distances[np.arange(len(classes)), classes].astype(np.float64))


def descriptor_answers(clips: Sequence[LabelledClip]) -> dict[str, Answer]:
    """Answers of every descriptor by name, hand-made or of a frozen tower: the class whose mean is nearest."""
    specs = (HOG_CLIP, HISTORY_CLIP, COLOUR_CLIP, CHANGE_CLIP)
    with progress("describing", len(clips)) as advance:
        pixels: list[list[NDArray[np.uint8]]] = [[] for _ in specs]
        for clip in clips:
            for seen, spec in zip(pixels, specs, strict=True):
                seen.append(load_clip(clip.open(), spec))
            advance(1)
    hog, history, colour, changes = (np.stack(seen) for seen in pixels)

    def answer_of(descriptor: Descriptor) -> Answer:
        values = descriptor.clips

        def answer(episode: EpisodeIndices, way: int) -> Given:
            means = values[episode.support[:way]].mean(axis=1)
            distances = descriptor.distances(values[episode.query.ravel()], means)
            return _given(distances, distances.argmin(axis=1))

        return answer

    described = describe(hog, history)
    described["frozen EfficientNet-Lite0"] = Descriptor(frozen_features(colour, changes), mean_cosine)
    return {name: answer_of(descriptor) for name, descriptor in described.items()}


def compare(
    answers: dict[str, Answer], sampler: EpisodeSampler, episodes: int, unknown: int = 0
) -> dict[str, dict[str, object]]:
    """Accuracy of every subject in percent, and the bundle's lead over it, each with a 95 % interval's half width.

    The last `unknown` classes of an episode are in no support set; with them, how well they are told from the others.
    """
    way = sampler.way - unknown
    known = np.repeat(np.arange(sampler.way), sampler.query) < way
    truth = np.repeat(np.arange(way), sampler.query)
    given: dict[str, list[Given]] = {name: [] for name in answers}
    with progress(f"{way}-way {sampler.shot}-shot", episodes) as advance:
        for episode in sampler.episodes(episodes):
            for name, answer in answers.items():
                given[name].append(answer(episode, way))
            advance(1)
    right = {name: np.stack([one.classes[known] == truth for one in found]) for name, found in given.items()}
    scores = {name: values.mean(axis=1) for name, values in right.items()}
    out: dict[str, dict[str, object]] = {name: _interval(values) for name, values in scores.items()}
    for name, values in scores.items():
        if name != MODEL:
            out[name]["bundle_leads_by"] = _interval(scores[MODEL] - values)
        if unknown:
            distances = np.stack([one.distances for one in given[name]])
            told = OpenAnswers(distances[:, known], right[name], distances[:, ~known])
            found = open_set(told, way, unknown)
            measures = {measure: getattr(found, measure) for measure in ("auroc", "false_positives", "oscr")}
            out[name]["open_set"] = {measure: [*asdict(value).values()] for measure, value in measures.items()}
    return out


def _interval(values: NDArray[np.float64]) -> dict[str, object]:
    half = 1.96 * float(values.std()) / math.sqrt(len(values))
    return {"accuracy": round(100 * float(values.mean()), 2), "ci95": round(100 * half, 2)}


def data_hash(folder: Path, clips: Sequence[LabelledClip]) -> str:
    """Hash of the names and bytes of all files of the clips' classes, whatever the order they are listed in."""
    total = hashlib.sha256()
    for label in sorted({clip.label for clip in clips}):
        for path in sorted(p for p in (folder / label).rglob("*") if p.is_file()):
            total.update(path.relative_to(folder).as_posix().encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def numbers(_ctx: click.Context, _parameter: click.Parameter, value: Sequence[str]) -> tuple[int, ...]:
    """An option that is given several times, or as a list with commas."""
    parts = [part for text in value for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{','.join(value)!r} is not a number or a list such as 1,5")
    return tuple(dict.fromkeys(map(int, parts)))


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", "bundle_path", type=click.Path(path_type=Path), help="Bundle [newest, else the shipped one].")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of class folders [generated test actions].")
@click.option("--name", help="What to file the result under [name of the data folder, or generated].")
@click.option("--classes", help="Only these classes, separated by commas.")
@click.option("--labels", type=click.Path(path_type=Path), help="CSV with columns class,text.")
@click.option("--groups", metavar="REGEX", help="First capture group in a clip's name: never both support and query.")
@click.option("--way", type=click.IntRange(2), default=5)
@click.option("--open-set", "unknown", type=click.IntRange(0), default=0, help="Further classes in no support set.")
@click.option("--shot", multiple=True, default=("1", "5"), callback=numbers)
@click.option("--query", type=click.IntRange(1), default=1)
@click.option("--episodes", type=click.IntRange(1), default=1000)
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/accuracy.json].")
def cli(
    bundle_path: Path | None,
    data: Path | None,
    name: str | None,
    classes: str | None,
    labels: Path | None,
    groups: str | None,
    way: int,
    unknown: int,
    shot: tuple[int, ...],
    query: int,
    episodes: int,
    seed: int,
    out: Path | None,
) -> None:
    """Compare a bundle with descriptors that need no training, episode by episode."""
    machine, target = Machine(), out or RESULTS / "accuracy.json"
    filed = earlier(target)
    chosen = classes.split(",") if classes else None
    clips = folder_clips(data, chosen)[0] if data else generated_clips(classes=chosen)
    sides = clip_groups([clip.name for clip in clips], groups) if groups else None
    samplers = [
        EpisodeSampler([clip.label for clip in clips], way=way + unknown, shot=k, query=query, seed=seed, groups=sides)
        for k in shot
    ]
    model = ruled(bundle_path)
    answers = model_answers(model, clips, read_labels(labels) if labels else {}) | descriptor_answers(clips)
    results = {f"{way}-way {s.shot}-shot": compare(answers, s, episodes, unknown) for s in samplers}
    record = {
        "results": results,
        "settings": {
            "classes": list(samplers[0].classes), "clips": len(clips), "groups": groups, "query": query,
            "episodes": episodes, "seed": seed, "unknown": unknown, "chance": round(100 / way, 2),
        },
        "data_sha256": data_hash(data, clips) if data else None,
        "bundle": {**described(model), "recipe": model.bundle.manifest.source.recipe},
        "command": shlex.join(["python", "-m", "benchmarks.accuracy", *(_last_part(part) for part in sys.argv[1:])]),
        "environment": machine.environment(),
    }  # fmt: skip
    for shots, subjects in results.items():
        for subject, values in subjects.items():
            lead = values.get("bundle_leads_by")
            beside = f"   bundle leads by {lead['accuracy']} ± {lead['ci95']}" if isinstance(lead, dict) else ""
            told = f"   {values['open_set']}" if unknown else ""
            click.echo(f"{shots}  {subject:26} {values['accuracy']:6.2f} ± {values['ci95']}{beside}{told}")
    filed[name or (data.resolve().name if data else "generated")] = record
    click.echo(f"written: {write('accuracy', filed, target)}")


def _last_part(argument: str) -> str:
    """An argument without the folders of this machine."""
    return Path(argument).name if Path(argument).exists() else argument


def earlier(path: Path) -> dict[str, object]:
    """What earlier runs on other data have filed in the same file. Raises InputError where it is another's."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds no results of this benchmark", "name another file with --out")
    return found


if __name__ == "__main__":
    main_entry(cli)
