"""Whether rejection does what it says: taught actions missed against the share that was claimed, over many banks.

    python -m benchmarks.rejection --name generated --way 2,3,5 --shot 2,3,5
    python -m benchmarks.rejection --data clips --groups '_(person[0-9]+)_' --name people

Every draw is a bank of its own, calibrated on its own clips. Without --groups its queries are drawn like its support
clips, which is what the claim assumes; with --groups they are of other people, which it does not. Rules of rejection
are chosen with `--split val`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import data_hash, earlier, numbers
from benchmarks.record import RESULTS, Machine, write
from benchmarks.ruled import described, ruled
from m2df_runtime.backends.model import Model
from m2df_runtime.bank.calibration import calibrate
from m2df_runtime.bundle.prompt_texts import prompt_embeddings
from m2df_runtime.commands.console import main_entry, progress
from m2df_runtime.errors import InputError
from m2df_train.data.clips import clip_groups, folder_clips, generated_clips
from m2df_train.data.episodes import EpisodeIndices, EpisodeSampler
from m2df_train.evaluation.features import Features, encode
from m2df_train.evaluation.open_set import auroc

Values = NDArray[np.float64]
MISS_RATES = (0.05, 0.1, 0.2)
RESAMPLES = 2000


@dataclass(frozen=True)
class Draw:
    """One bank: for each of `MISS_RATES` what was claimed, missed, and answered of unknown queries; its probabilities.

    Attributes:
        claimed: Share of taught actions expected to be missed.
        missed: Share of known queries that were.
        answered: Share of unknown queries that were answered.
        auroc: How probable it is that a known query is nearer than an unknown one.
        accuracy: Share of known queries that were given their class.
        said: What was said of the known ones.
        untempered: What would have been said without temperature.
    """

    claimed: Values
    missed: Values
    answered: Values
    auroc: float
    accuracy: float
    said: Said
    untempered: Said


class Said(NamedTuple):
    """Mean probability of the given class, and mean surprise in nats: -log of the true class's probability."""

    sure: float
    surprise: float


def draw(model: Model, features: Features, prompts: NDArray[np.float32], episode: EpisodeIndices, way: int) -> Draw:
    """Calibrate the first `way` classes of an episode as a bank, and ask all its queries."""
    values, texts = features.values, prompts[episode.classes[:way]]
    support = [values[clips] for clips in episode.support[:way]]
    prototypes = np.stack([model.prototypes(clips, text[None]) for clips, text in zip(support, texts, strict=True)])
    calibration = calibrate(model, support, texts, prototypes)
    if calibration is None:
        raise InputError(
            f"a bank of {way} x {len(support[0])} clips is not calibrated", "take --way and --shot from 2 up"
        )
    scores = model.match(values[episode.query.ravel()], texts, prototypes)
    best = scores.logits.argmax(axis=1)
    distances = scores.distances.sum(axis=1)[np.arange(len(best)), best].astype(np.float64)
    truth = np.repeat(np.arange(len(episode.classes)), episode.query.shape[1])
    known = truth < way
    rejections = [calibration.rejection(rate) for rate in MISS_RATES]
    return Draw(
        claimed=np.asarray([one.miss_rate for one in rejections]),
        missed=np.asarray([(distances[known] > one.threshold).mean() for one in rejections]),
        answered=np.asarray([(distances[~known] <= one.threshold).mean() for one in rejections]),
        auroc=auroc(distances[known], distances[~known]),
        accuracy=float((best == truth)[known].mean()),
        said=_said(scores.logits[known], truth[known], calibration.temperature),
        untempered=_said(scores.logits[known], truth[known], 1.0),
    )


def _said(logits: NDArray[np.float32], truth: NDArray[np.int64], temperature: float) -> Said:
    wide = logits.astype(np.float64) / temperature
    wide -= wide.max(axis=1, keepdims=True)
    total = np.log(np.exp(wide).sum(axis=1))
    return Said(float(np.exp(-total).mean()), float((total - wide[np.arange(len(wide)), truth]).mean()))


def summary(draws: Sequence[Draw], seed: int = 0) -> dict[str, object]:
    """Means over draws, in percent and nats, each with its 95 % bootstrap interval over draws."""
    chosen = np.random.default_rng(seed).integers(0, len(draws), (RESAMPLES, len(draws)))

    def mean(values: Sequence[float] | Values, unit: float = 100) -> list[float]:
        of = unit * np.asarray(values, float)
        low, high = np.percentile(of[chosen].mean(axis=1), [2.5, 97.5])
        return [round(float(value), 2 if unit == 100 else 3) for value in (of.mean(), low, high)]

    rates = {
        f"{rate:g}": {
            "claimed": round(100 * float(np.mean([one.claimed[place] for one in draws])), 2),
            "missed": mean([one.missed[place] for one in draws]),
            "unknown_answered": mean([one.answered[place] for one in draws]),
        }
        for place, rate in enumerate(MISS_RATES)
    }
    return {
        "miss_rates": rates,
        "auroc": mean([one.auroc for one in draws]),
        "accuracy": mean([one.accuracy for one in draws]),
        **{
            name: {"sure": mean([one.sure for one in found]), "surprise": mean([one.surprise for one in found], 1)}
            for name, found in (
                ("said", [one.said for one in draws]),
                ("untempered", [one.untempered for one in draws]),
            )
        },
    }


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", "bundle_path", type=click.Path(path_type=Path), help="Bundle [newest, else the shipped one].")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of class folders [generated actions].")
@click.option("--split", type=click.Choice(["val", "test"]), default="test", help="Which generated actions.")
@click.option("--name", required=True, help="What to file the result under.")
@click.option("--groups", metavar="REGEX", help="First capture group in a clip's name: never both support and query.")
@click.option("--way", "ways", multiple=True, default=("5",), callback=numbers, help="Classes of a bank; several: 2,5.")
@click.option("--unknown", type=click.IntRange(1), default=5, help="Further classes.")
@click.option("--shot", "shots", multiple=True, default=("5",), callback=numbers, help="Support clips of each class.")
@click.option("--query", type=click.IntRange(1), default=10, help="Queries of each class.")
@click.option("--draws", type=click.IntRange(1), default=300, help="Banks of each size.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/rejection.json].")
def cli(
    bundle_path: Path | None,
    data: Path | None,
    split: Literal["val", "test"],
    name: str,
    groups: str | None,
    ways: tuple[int, ...],
    unknown: int,
    shots: tuple[int, ...],
    query: int,
    draws: int,
    seed: int,
    out: Path | None,
) -> None:
    """Compare the miss rates that banks claim with those that their queries have."""
    machine, target = Machine(), out or RESULTS / "rejection.json"
    filed = earlier(target)
    clips = folder_clips(data)[0] if data else generated_clips(split=split)
    model = ruled(bundle_path)
    manifest = model.bundle.manifest
    with progress("encoding", len(clips)) as advance:
        features = encode(model, clips, manifest.clip, advance=advance)
    sides = clip_groups(features.names, groups) if groups else None
    samplers = {
        (way, shot): EpisodeSampler(features.labels, way=way + unknown, shot=shot, query=query, seed=seed, groups=sides)
        for way in ways
        for shot in shots
    }
    classes = next(iter(samplers.values())).classes
    prompts = prompt_embeddings(map(manifest.text.rules.prompts, classes), model.encode_texts)
    results = {}
    for (way, shot), sampler in samplers.items():
        found = []
        with progress(f"{way}-way {shot}-shot", draws) as advance:
            for episode in sampler.episodes(draws):
                found.append(draw(model, features, prompts, episode, way))
                advance(1)
        results[f"{way}-way {shot}-shot"] = summary(found)
        click.echo(f"{way}-way {shot}-shot: {json.dumps(results[f'{way}-way {shot}-shot'])}")
    record = {
        "results": results,
        "settings": {
            "unknown": unknown, "query": query, "draws": draws, "seed": seed, "groups": groups,
            "actions": None if data else split, "clips": len(features.names), "classes": list(classes),
        },
        "data_sha256": data_hash(data, clips) if data else None,
        "bundle": described(model),
        "environment": machine.environment(),
    }  # fmt: skip
    click.echo(f"written: {write('rejection', {**filed, name: record}, target)}")


if __name__ == "__main__":
    main_entry(cli)
