"""What `m2df-eval` evaluates: models, opened from a bundle or a checkpoint, and their features of a set of clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.manifest import MANIFEST_NAME
from m2df_runtime.bundle.prompt_texts import ClassTexts, LabelRules, prompt_embeddings
from m2df_runtime.bundle.shipped import newest_bundle
from m2df_runtime.engine_names import BackendName, RunPrecision
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.spec import ClipSpec
from m2df_runtime.progress import Progress, silent
from m2df_train.cache.features import FeatureCache, identity_of
from m2df_train.data.clips import LabelledClip
from m2df_train.data.workers import worker_count
from m2df_train.evaluation.bundle_scorer import BundleScorer
from m2df_train.evaluation.clips import EpisodeOptions
from m2df_train.evaluation.episode_run import EncodedClips
from m2df_train.evaluation.features import Features, encode
from m2df_train.evaluation.scorer import EpisodeScorer

# Where PyTorch computes instead of an engine.
_DEVICES: dict[BackendName, Literal["auto", "cpu", "cuda"]] = {
    "auto": "auto",
    "tensorrt": "cuda",
    "cuda": "cuda",
    "openvino": "cpu",
    "cpu": "cpu",
}


@dataclass(frozen=True)
class Subject:
    """A model under evaluation.

    Attributes:
        path: The bundle, checkpoint or run directory.
        scorer: Runs it.
        spec: Its preprocessing.
        rules: How class names become its prompts.
        backend: Engine and device in use.
        precision: Precision in use.
        identity: Computes what stands for all that its features depend on, for the cache of features.
    """

    path: Path
    scorer: EpisodeScorer
    spec: ClipSpec
    rules: LabelRules
    backend: str
    precision: str
    identity: Callable[[], str]


@dataclass(frozen=True)
class Encoded:
    """A model's features of the clips, and the prompts [C, D] of their classes in order of first appearance."""

    subject: Subject
    features: Features
    prompts: NDArray[np.float32]

    def clips(self, options: EpisodeOptions) -> EncodedClips:
        """What episodes are drawn from."""
        features = self.features
        return EncodedClips(features.values, features.labels, self.prompts, options.groups_of(features.names))


def open_bundle(path: Path | None, backend: BackendName, precision: RunPrecision | None, texts: ClassTexts) -> Subject:
    """A bundle; None for the newest, else the shipped one.

    Args:
        path: The bundle.
        backend: Inference engine.
        precision: None for the fastest that passed its parity check.
        texts: Texts of classes, over those of the bundle.

    Raises:
        InputError: Not a bundle, or one without the precision.
        EnvironmentMissing: The engine is not on this machine.
    """
    bundle = Bundle.open(path or newest_bundle())
    scorer = BundleScorer(bundle, backend, precision)
    rules = bundle.manifest.text.rules.over(texts)

    def identity() -> str:
        # The file in use: another one of its precision may stand beside the same reference.
        file = bundle.graph_file("visual", scorer.files)
        engine = scorer.backend if scorer.files == scorer.precision else f"{scorer.backend} {scorer.precision}"
        return identity_of("bundle", file.sha256, bundle.manifest.clip.model_dump_json(), engine)

    return Subject(bundle.path, scorer, bundle.manifest.clip, rules, scorer.backend, scorer.precision, identity)


def open_checkpoint(path: Path, backend: BackendName, texts: ClassTexts) -> Subject:
    """A checkpoint or the best one of a run directory, in PyTorch, on the device that `backend` computes on.

    Raises:
        InputError: Not a checkpoint.
        EnvironmentMissing: CUDA is asked for and PyTorch has none.
    """
    from m2df_train.cache.encoding import deployed_identity
    from m2df_train.evaluation.torch_scorer import CheckpointScorer
    from m2df_train.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    scorer = CheckpointScorer(checkpoint, _DEVICES[backend])
    rules = checkpoint.rules.over(texts)

    def identity() -> str:  # as training has it for its validation and test clips, so that these are found again
        return deployed_identity(checkpoint.backbone, checkpoint.clip)

    return Subject(path, scorer, checkpoint.clip, rules, scorer.backend, scorer.precision, identity)


def is_bundle(path: Path) -> bool:
    """Whether a path is a bundle and not a checkpoint or run directory, as far as names tell.

    Raises:
        InputError: Nothing is there, or a directory that is neither.
    """
    if not path.exists():
        raise InputError(f"{path}: no such bundle or checkpoint", "m2df-export writes bundles/, m2df-train runs/")
    if path.is_file():
        return path.suffix == ".zip"
    if (path / MANIFEST_NAME).is_file():
        return True
    if any(path.glob("*.safetensors")):
        return False
    raise InputError(f"{path}: neither a bundle nor a run", f"it has no {MANIFEST_NAME} and no checkpoint")


def encode_for_all(
    subjects: Sequence[Subject],
    clips: Sequence[LabelledClip],
    texts: ClassTexts,
    cache: FeatureCache,
    progress: Progress = silent,
) -> list[Encoded]:
    """Features of the clips that every model can read, from each model.

    Args:
        subjects: The models.
        clips: The clips.
        texts: Texts of their classes, for those that a model has none of its own for.
        cache: Where features are found and kept.
        progress: Shows the encoding.

    Raises:
        InputError: No clip can be read.
    """
    read: list[tuple[Subject, Features]] = []
    for subject in subjects:
        unread = {name for _, other in read for name in other.skipped}
        readable = [clip for clip in clips if clip.name not in unread]
        with progress(f"encoding, {subject.path.name}", len(readable)) as advance:
            features = encode(
                subject.scorer,
                readable,
                subject.spec,
                cache=cache,
                identity=subject.identity() if cache.lasting else "",
                workers=worker_count(),
                advance=advance,
            )
        rules = subject.rules.completed(texts)
        read.append((replace(subject, rules=rules), features))
    skipped = tuple(name for _, features in read for name in features.skipped)
    return [_prompted(subject, _without(features, skipped)) for subject, features in read]


def _prompted(subject: Subject, features: Features) -> Encoded:
    names = dict.fromkeys(features.labels)
    prompts = prompt_embeddings(map(subject.rules.prompts, names), subject.scorer.encode_texts)
    return Encoded(subject, features, prompts)


def _without(features: Features, skipped: tuple[str, ...]) -> Features:
    """The features less those of clips that another model could not read."""
    kept = [place for place, name in enumerate(features.names) if name not in skipped]
    return Features(
        features.values[kept],
        tuple(features.labels[place] for place in kept),
        tuple(features.names[place] for place in kept),
        skipped,
        features.seconds,
    )
