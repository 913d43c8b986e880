"""Episodes from features encoded once, against reading and encoding the clips of every episode anew.

    python -m benchmarks.evaluation --bundle bundles/mine
    python -m benchmarks.evaluation --model ViT-B-16-quickgelu --encode 12 --sample 1 --out result.json

The second way is how the public code of both papers evaluates; a few episodes of it are timed and
multiplied. Both ways read clips in this one process, with the same engine and threads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

import click
import numpy as np

from benchmarks.models import random_model
from benchmarks.record import Machine, bundle_hash, write
from benchmarks.ruled import ENGINE
from m2df_runtime.backends.precisions import default_precision
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.prompt_texts import LabelRules, prompt_embeddings
from m2df_runtime.bundle.shipped import newest_bundle
from m2df_runtime.commands.console import main_entry, progress
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.data.clips import LabelledClip, folder_clips, generated_clips
from m2df_train.data.episodes import EpisodeSampler
from m2df_train.evaluation.bundle_scorer import BundleScorer
from m2df_train.evaluation.episode_run import Answers, EncodedClips, EpisodePlan, Float, Int, episode_answers
from m2df_train.evaluation.features import encode
from m2df_train.evaluation.scorer import EpisodeScorer


@dataclass(frozen=True)
class Subject:
    """The model: what runs it, its preprocessing and its prompts; `sha256` is that of a bundle."""

    name: str
    sha256: str | None
    scorer: EpisodeScorer
    spec: ClipSpec
    rules: LabelRules


@dataclass(frozen=True)
class Seconds:
    """Time by the clock and of the processor."""

    wall: float
    cpu: float

    def times(self, factor: float) -> dict[str, float]:
        """Both, multiplied, for the record."""
        return {"wall": round(self.wall * factor, 3), "cpu": round(self.cpu * factor, 3)}


class Watch:
    """Measures from its creation."""

    def __init__(self) -> None:
        self._wall, self._cpu = perf_counter(), process_time()

    def read(self) -> Seconds:
        """Since creation."""
        return Seconds(perf_counter() - self._wall, process_time() - self._cpu)


def bundle_subject(path: Path | None) -> Subject:
    """A bundle on the CPU."""
    bundle = Bundle.open(path or newest_bundle())
    scorer = BundleScorer(bundle, ENGINE, default_precision(bundle, ENGINE))
    rules = bundle.manifest.text.rules
    name = f"{bundle.manifest.name}, ONNX Runtime {scorer.precision}"
    return Subject(name, bundle_hash(bundle), scorer, bundle.manifest.clip, rules)


def random_subject(model: str) -> Subject:
    """An open_clip model of random weights with the CLIP-M2DF head, in PyTorch on the CPU."""
    from m2df_train.evaluation.torch_scorer import CheckpointScorer

    checkpoint = random_model(model)
    name = f"{model}, random weights, PyTorch fp32"
    return Subject(name, None, CheckpointScorer(checkpoint, "cpu"), checkpoint.clip, LabelRules())


def written_clips(folder: Path) -> list[LabelledClip]:
    """The generated test actions as video files: reading them costs what a user's clips cost."""
    from m2df_train.synthetic.demo_clips import encode_mp4

    clips = generated_clips()
    with progress("writing clips", len(clips)) as advance:
        for clip in clips:
            source = clip.open()
            path = folder / f"{clip.name}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            encode_mp4(path, source.read(np.arange(source.n_frames)), source.fps)
            advance(1)
    return folder_clips(folder)[0]


def reencoded(
    subject: Subject, clips: Sequence[LabelledClip], prompts: Float, sampler: EpisodeSampler, sample: int
) -> tuple[list[Seconds], Int]:
    """Time of each of the first episodes with all their clips read and encoded, and the answers [E, W, Q]."""
    scorer, times, answers = subject.scorer, [], []
    with progress("re-encoding", sample) as advance:
        for episode in sampler.episodes(sample):
            watch = Watch()
            chosen = [*episode.support.ravel(), *episode.query.ravel()]
            features = encode(scorer, [clips[place] for place in chosen], subject.spec).values
            support = features[: episode.support.size].reshape(*episode.support.shape, *features.shape[1:])
            texts = prompts[episode.classes]
            classes = np.stack([scorer.prototypes(shots, texts[w : w + 1]) for w, shots in enumerate(support)])
            logits = scorer.match(features[episode.support.size :], texts, classes).logits
            times.append(watch.read())
            answers.append(logits.argmax(axis=1).reshape(episode.query.shape))
            advance(1)
    return times, np.stack(answers)


def features_of(subject: Subject, clips: Sequence[LabelledClip], count: int) -> tuple[Float, Seconds]:
    """Features of the first `count` clips, repeated for the rest, and the time they took."""
    encode(subject.scorer, clips[:1], subject.spec)  # what an engine does at its first call is in neither way
    watch = Watch()
    with progress("encoding once", count) as advance:
        found = encode(subject.scorer, clips[:count], subject.spec, advance=advance)
    if found.skipped:
        raise InputError(f"{', '.join(found.skipped)} cannot be read", "name a folder of clips that can")
    return np.resize(found.values, (len(clips), *found.values.shape[1:])), watch.read()


def measure(
    subject: Subject,
    clips: Sequence[LabelledClip],
    *,
    way: int,
    shots: Sequence[int],
    query: int,
    episodes: int,
    sample: int,
    count: int,
) -> list[dict[str, object]]:
    """One record per number of shots."""
    labels = [clip.label for clip in clips]
    prompts = prompt_embeddings(map(subject.rules.prompts, dict.fromkeys(labels)), subject.scorer.encode_texts)
    features, encoding = features_of(subject, clips, count)
    records = []
    for shot in shots:
        sampler = EpisodeSampler(labels, way=way, shot=shot, query=query)
        times, single = reencoded(subject, clips, prompts, sampler, sample)
        each = Seconds(median(t.wall for t in times), median(t.cpu for t in times))
        watch = Watch()
        with progress(f"{shot}-shot", episodes) as advance:
            answers: Answers = episode_answers(
                subject.scorer,
                EncodedClips(features, labels, prompts),
                EpisodePlan(way, shot, query, episodes),
                advance=advance,
            )
        run = watch.read()
        once = Seconds(encoding.wall * len(clips) / count, encoding.cpu * len(clips) / count)
        records.append(
            {
                "shot": shot,
                "ratio_wall": round(each.wall * episodes / (once.wall + run.wall), 1),
                "ratio_cpu": round(each.cpu * episodes / (once.cpu + run.cpu), 1),
                "seconds": {
                    "encoding_once": once.times(1),
                    "encoding_once_extrapolated_from_clips": None if count == len(clips) else count,
                    "episodes_from_features": run.times(1),
                    "reencoding_extrapolated": each.times(episodes),
                    "reencoding_one_episode": each.times(1),
                },
                "same_answers": bool((answers.predicted[:sample] == single).all()) if count == len(clips) else None,
            }
        )
    return records


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle [newest, else the shipped one].")
@click.option("--model", help="In its place an open_clip model with random weights and the M2DF head, in PyTorch.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of class folders [generated clips, as files].")
@click.option("--way", type=click.IntRange(2), default=5)
@click.option("--shot", "shots", type=click.IntRange(1), multiple=True, default=(1, 5))
@click.option("--query", type=click.IntRange(1), default=1)
@click.option("--episodes", type=click.IntRange(1), default=10_000, help="Episodes from features.")
@click.option("--sample", type=click.IntRange(1), default=10, help="Episodes that are re-encoded.")
@click.option("--encode", "count", type=click.IntRange(1), help="Clips to encode; the others' time is added [all].")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/evaluation.json].")
def cli(
    bundle: Path | None,
    model: str | None,
    data: Path | None,
    way: int,
    shots: tuple[int, ...],
    query: int,
    episodes: int,
    sample: int,
    count: int | None,
    out: Path | None,
) -> None:
    """Time an evaluation from features against one that encodes every episode's clips."""
    machine = Machine()
    subject = random_subject(model) if model else bundle_subject(bundle)
    with tempfile.TemporaryDirectory() as folder:
        clips = folder_clips(data)[0] if data else written_clips(Path(folder))
        used = min(count or len(clips), len(clips))
        options = {"way": way, "query": query, "episodes": episodes, "sample": sample}
        found = measure(subject, clips, **options, shots=shots, count=used)
    record = {
        "results": found,
        "model": {"name": subject.name, "sha256": subject.sha256},
        "settings": {**options, "clips": len(clips), "frames": subject.spec.frames, "size": subject.spec.size},
        "environment": machine.environment(),
    }
    for result in found:
        click.echo(
            f"{subject.name}, {way}-way {result['shot']}-shot, {episodes} episodes of {len(clips)} clips:"
            f" {result['ratio_wall']}x faster by the clock, {result['ratio_cpu']}x in processor time"
        )
        click.echo(f"  seconds: {result['seconds']}")
    click.echo(f"written: {write('evaluation', record, out)}")


if __name__ == "__main__":
    main_entry(cli)
