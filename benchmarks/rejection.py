"""Whether rejection does what it says: taught actions missed against the share that was claimed, over many banks.

    python -m benchmarks.rejection --name generated
    python -m benchmarks.rejection --data clips --groups '_(person[0-9]+)_' --name people

Every draw is a bank of its own, calibrated on its own clips. Without --groups its queries are drawn like its support
clips, which is what the claim assumes; with --groups they are of other people, which it does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import data_hash, earlier
from benchmarks.record import RESULTS, Machine, bundle_hash, write
from m2df_runtime.backends.model import Model, QueryScores
from m2df_runtime.bank.calibration import calibrate
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.prompt_texts import prompt_embeddings
from m2df_runtime.bundle.shipped import newest_bundle
from m2df_runtime.commands.console import main_entry, progress
from m2df_runtime.errors import InputError
from m2df_train.data.clips import clip_groups, folder_clips, generated_clips
from m2df_train.data.episodes import EpisodeIndices, EpisodeSampler
from m2df_train.evaluation.features import Features, encode

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
        accuracy: Share of known queries that were given their class.
        sure: Mean probability of the given class.
        untempered: The same without temperature.
    """

    claimed: Values
    missed: Values
    answered: Values
    accuracy: float
    sure: float
    untempered: float


def draw(model: Model, features: Features, prompts: NDArray[np.float32], episode: EpisodeIndices, way: int) -> Draw:
    """Calibrate the first `way` classes of an episode as a bank, and ask all its queries."""
    values, texts = features.values, prompts[episode.classes[:way]]
    support = [values[clips] for clips in episode.support[:way]]
    prototypes = np.stack([model.prototypes(clips, text[None]) for clips, text in zip(support, texts, strict=True)])
    calibration = calibrate(model, support, texts, prototypes)
    if calibration is None:
        raise InputError("a bank of one clip for each class cannot be calibrated", "take --shot 2 or more")
    scores = model.match(values[episode.query.ravel()], texts, prototypes)
    best = scores.logits.argmax(axis=1)
    distances = scores.distances.sum(axis=1)[np.arange(len(best)), best]
    truth = np.repeat(np.arange(len(episode.classes)), episode.query.shape[1])
    known = truth < way
    rejections = [calibration.rejection(rate) for rate in MISS_RATES]
    return Draw(
        claimed=np.asarray([one.miss_rate for one in rejections]),
        missed=np.asarray([(distances[known] > one.threshold).mean() for one in rejections]),
        answered=np.asarray([(distances[~known] <= one.threshold).mean() for one in rejections]),
        accuracy=float((best == truth)[known].mean()),
        sure=_sure(scores, known, calibration.temperature),
        untempered=_sure(scores, known, 1.0),
    )


def _sure(scores: QueryScores, known: NDArray[np.bool_], temperature: float) -> float:
    """Mean probability of the given class of known queries."""
    logits = scores.logits[known].astype(np.float64) / temperature
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return float((1 / exponents.sum(axis=1)).mean())


def summary(draws: Sequence[Draw], seed: int = 0) -> dict[str, object]:
    """Means over draws in percent, each with its 95 % bootstrap interval over draws."""
    chosen = np.random.default_rng(seed).integers(0, len(draws), (RESAMPLES, len(draws)))

    def mean(values: Sequence[float] | Values) -> list[float]:
        of = 100 * np.asarray(values, float)
        low, high = np.percentile(of[chosen].mean(axis=1), [2.5, 97.5])
        return [round(float(value), 2) for value in (of.mean(), low, high)]

    rates = {
        f"{rate:g}": {
            "claimed": round(100 * float(np.mean([one.claimed[place] for one in draws])), 2),
            "missed": mean([one.missed[place] for one in draws]),
            "unknown_answered": mean([one.answered[place] for one in draws]),
        }
        for place, rate in enumerate(MISS_RATES)
    }
    names = ("accuracy", "sure", "untempered")
    return {"miss_rates": rates, **{name: mean([getattr(one, name) for one in draws]) for name in names}}


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", "bundle_path", type=click.Path(path_type=Path), help="Bundle [newest, else the shipped one].")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of class folders [generated test actions].")
@click.option("--name", required=True, help="What to file the result under.")
@click.option("--groups", metavar="REGEX", help="First capture group in a clip's name: never both support and query.")
@click.option("--way", type=click.IntRange(2), default=5, help="Classes of a bank.")
@click.option("--unknown", type=click.IntRange(1), default=5, help="Further classes.")
@click.option("--shot", type=click.IntRange(2), default=5, help="Support clips of each class.")
@click.option("--query", type=click.IntRange(1), default=10, help="Queries of each class.")
@click.option("--draws", type=click.IntRange(1), default=300, help="Banks.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/rejection.json].")
def cli(
    bundle_path: Path | None,
    data: Path | None,
    name: str,
    groups: str | None,
    way: int,
    unknown: int,
    shot: int,
    query: int,
    draws: int,
    seed: int,
    out: Path | None,
) -> None:
    """Compare the miss rates that banks claim with those that their queries have."""
    machine, target = Machine(), out or RESULTS / "rejection.json"
    filed = earlier(target)
    clips = folder_clips(data)[0] if data else generated_clips()
    bundle = Bundle.open(bundle_path or newest_bundle())
    model = Model(bundle)
    with progress("encoding", len(clips)) as advance:
        features = encode(model, clips, bundle.manifest.clip, advance=advance)
    sides = clip_groups(features.names, groups) if groups else None
    sampler = EpisodeSampler(features.labels, way=way + unknown, shot=shot, query=query, seed=seed, groups=sides)
    prompts = prompt_embeddings(map(bundle.manifest.text.rules.prompts, sampler.classes), model.encode_texts)
    found = []
    with progress("calibrating", draws) as advance:
        for episode in sampler.episodes(draws):
            found.append(draw(model, features, prompts, episode, way))
            advance(1)
    results = summary(found)
    record = {
        "results": results,
        "settings": {
            "way": way, "unknown": unknown, "shot": shot, "query": query, "draws": draws, "seed": seed,
            "groups": groups, "clips": len(features.names), "classes": list(sampler.classes),
        },
        "data_sha256": data_hash(data, clips) if data else None,
        "bundle": {
            "name": bundle.manifest.name, "sha256": bundle_hash(bundle), "backend": model.backend,
            "precision": model.precision,
        },
        "environment": machine.environment(),
    }  # fmt: skip
    for rate, values in dict(results["miss_rates"]).items():  # type: ignore[call-overload]
        click.echo(f"wished {float(rate):.0%}: {values}")
    click.echo(f"accuracy {results['accuracy']}, said {results['sure']}, untempered {results['untempered']}")
    click.echo(f"written: {write('rejection', {**filed, name: record}, target)}")


if __name__ == "__main__":
    main_entry(cli)
