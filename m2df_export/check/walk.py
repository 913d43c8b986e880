"""The walk of one side, the reference or an engine: clips through every stage, and what each gave left in a folder.

An engine walks in a process of its own. A stage's file appears when the stage is done, so where a process ended
shows which one ended it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2df_export.check.single_graphs import cpu_ms, drawn_inputs, graph_outputs
from m2df_export.check.stages import ALONE, EPISODES, STAGES, Stage
from m2df_runtime.backends.model import Model, QueryScores
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.prompt_texts import LabelRules, prompt_embeddings
from m2df_runtime.clips.opening import open_source
from m2df_runtime.commands.console import guarded
from m2df_runtime.errors import ClipError, InputError
from m2df_runtime.pixels.load import chosen_frames, load_clip
from m2df_runtime.pixels.spec import ClipSpec
from m2df_train.evaluation.bundle_scorer import BundleScorer
from m2df_train.evaluation.episode_run import Answers, EncodedClips, EpisodePlan, episode_answers
from m2df_train.evaluation.scorer import EpisodeScorer

Float = NDArray[np.float32]

REQUEST, INFO = "request.json", "info.json"
_INPUTS = "inputs"
_SHOTS = 2  # support clips of a class's prototypes, where it has as many and a query beside them


@dataclass(frozen=True)
class Request:
    """What a process does.

    Attributes:
        kind: `bundle` or `checkpoint`.
        path: Of the model.
        backend: Engine; a checkpoint runs in PyTorch on the CPU.
        precision: Of the graphs.
        clips: Class, name and path of every clip, in blocks of classes; none where top-1 says nothing.
        reference: Folder of the reference's results; None for the reference itself.
        way: Classes per episode.
        episodes: Number of 1-shot episodes; 0 for none.
        seed: Of the episodes.
        fresh: The model was exported a moment ago: pixels are the reference's, for no other code would make them, and
            each graph is also held to drawn inputs and timed.
    """

    kind: str
    path: str
    backend: str
    precision: str
    clips: tuple[tuple[str, str, str], ...]
    reference: str | None
    way: int
    episodes: int
    seed: int
    fresh: bool = False

    @property
    def steps(self) -> list[str]:
        """What there is to do, in order."""
        stages = [stage for stage, graph in STAGES.items() if self.clips and not (self.fresh and graph is None)]
        return [*stages, *([ALONE] if self.fresh else []), *([EPISODES] if self.episodes else [])]

    def write(self, folder: Path) -> None:
        """Leave it where the process finds it."""
        (folder / REQUEST).write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Request:
        """What `write` wrote."""
        data = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        return cls(**{**data, "clips": tuple(tuple(clip) for clip in data["clips"])})


@dataclass(frozen=True)
class Opened:
    """A model as the walk takes it; `stages` runs single stages, an `EpisodeScorer` of it many episodes at once."""

    stages: Any  # a Model or a CheckpointScorer
    engine: str
    spec: ClipSpec
    rules: LabelRules


def write_results(folder: Path, step: str, **arrays: NDArray[Any]) -> None:
    """Leave what a step gave, under another name first: a process that crashes leaves no half of it."""
    partial = folder / f"{step}.partial.npz"
    np.savez(partial, **arrays)  # type: ignore[arg-type]  # its keyword arguments are arrays, not only allow_pickle
    partial.rename(folder / f"{step}.npz")


def read_results(folder: Path, step: str) -> dict[str, NDArray[Any]] | None:
    """What `write_results` left of a step; None where the process did not come so far."""
    path = folder / f"{step}.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def read_answers(folder: Path) -> Answers | None:
    """A process's answers to the episodes, or None."""
    data = read_results(folder, EPISODES)
    if data is None:
        return None
    names = tuple(data["names"].tolist())
    return Answers(names, data["classes"], data["query"], data["predicted"], int(data["shot"]), {}, 0.0)


class Walk:
    """One side's way through the stages; the reference's results, where there are any, are the other inputs.

    Args:
        folder: Takes the results.
        request: What to walk.
        opened: The model, where this process has it already.
    """

    def __init__(self, folder: Path, request: Request, opened: Opened | None = None) -> None:
        self._folder = folder
        self._request = request
        self._opened = opened
        self._reference = None if request.reference is None else Path(request.reference)

    def run(self) -> None:
        """Walk.

        Raises:
            M2dfError: A stage fails.
        """
        model = self._opened or self._open()
        info = {"engine": model.engine, "clip": model.spec.model_dump(mode="json")}
        (self._folder / INFO).write_text(json.dumps(info), encoding="utf-8")
        if self._request.clips:
            pixels, labels = self._pixels(model.spec)
            features, prompts = self._stages(model, pixels, labels)
        if self._request.fresh:
            self._alone(model)
        if self._request.episodes:
            self._episodes(model, features, prompts, labels)

    def _pixels(self, spec: ClipSpec) -> tuple[NDArray[np.uint8], list[str]]:
        """Pixels [M, T, S, S, 3] and classes of the clips that could be read."""
        if self._request.fresh:
            given = read_results(self._reference or self._folder, "pixels")
            assert given is not None  # the exporter wrote them
            return given["chain"], [label for label, _, _ in self._request.clips]
        decoded, read, kept = self._read(spec)
        self._save("decode", digests=np.array(decoded), names=np.array([name for _, name, _ in kept]))
        digests = np.array([hashlib.sha256(clip.tobytes()).hexdigest() for clip in read])
        pixels = np.stack(read)
        # Pixels are large: only the reference's are needed as inputs.
        self._save("pixels", digests=digests, **({} if self._reference else {"chain": pixels}))
        return pixels, [label for label, _, _ in kept]

    def _open(self) -> Opened:
        request = self._request
        if request.kind == "checkpoint":
            import torch

            from m2df_train.evaluation.torch_scorer import CheckpointScorer
            from m2df_train.model.checkpoint import load_checkpoint

            checkpoint = load_checkpoint(Path(request.path))
            scorer = CheckpointScorer(checkpoint, "cpu")
            return Opened(scorer, f"PyTorch {torch.__version__}", checkpoint.clip, checkpoint.rules)
        session = Model(Bundle.open(request.path), backend=request.backend, precision=request.precision)  # type: ignore[arg-type]
        manifest = session.bundle.manifest
        return Opened(session, session.description, manifest.clip, manifest.text.rules)

    def _read(self, spec: ClipSpec) -> tuple[list[str], list[NDArray[np.uint8]], list[tuple[str, str, str]]]:
        """Digests of the decoded frames, the pixels, and the clips that could be read."""
        decoded, pixels, kept = [], [], []
        for clip in self._request.clips:
            try:
                source = open_source(Path(clip[2]))
                digest = hashlib.sha256(source.read(chosen_frames(source, spec)).tobytes()).hexdigest()
                loaded = load_clip(source, spec)
            except ClipError:
                if self._reference is not None:
                    raise  # the reference could read it
                continue
            decoded.append(digest)
            pixels.append(loaded)
            kept.append(clip)
        if not kept:
            raise InputError("no clip can be read")
        return decoded, pixels, kept

    def _stages(self, model: Opened, pixels: NDArray[np.uint8], labels: list[str]) -> tuple[Float, Float]:
        """Features [M, T, D] and prompts [C, D] of the engine's own chain; every stage is saved."""
        run = model.stages
        support, query = _roles(labels)
        features = _encode(run, pixels)
        given = self._given("pixels", pixels)
        alone = features if np.array_equal(given, pixels) else _encode(run, given)
        self._save("features", chain=features, alone=alone)
        sets = [model.rules.prompts(name) for name in dict.fromkeys(labels)]
        prompts = prompt_embeddings(sets, run.encode_texts)
        self._save("prompts", chain=prompts, alone=prompts, texts=np.array(["; ".join(own) for own in sets]))
        prototypes = _prototypes(run, features, prompts, support)
        others = self._given("features", features), self._given("prompts", prompts)
        alone = prototypes if self._reference is None else _prototypes(run, *others, support)
        self._save("prototypes", chain=prototypes, alone=alone)
        self._scores(
            run.match(features[query], prompts, prototypes),
            run.match(others[0][query], others[1], self._given("prototypes", prototypes)),
        )
        return features, prompts

    def _alone(self, model: Opened) -> None:
        """Each graph on the inputs that the reference drew, and what a query costs."""
        run, request = model.stages, self._request
        if self._reference is None:
            inputs = drawn_inputs(run, model.rules, model.spec)
            write_results(self._folder, _INPUTS, **inputs)
            self._save(ALONE, **graph_outputs(run, inputs))
            return
        given = read_results(self._reference, _INPUTS)
        assert given is not None  # the reference drew them
        single = Model(run.bundle, backend=request.backend, precision=request.precision, threads=1)  # type: ignore[arg-type]
        self._save(ALONE, cpu_ms=np.array(cpu_ms(single, given)), **graph_outputs(run, given))

    def _scores(self, chain: QueryScores, alone: QueryScores) -> None:
        self._save("selection", chain=chain.selected, alone=alone.selected)
        self._save("distances", chain=chain.distances, alone=alone.distances)
        self._save("scores", chain=chain.logits, alone=alone.logits)

    def _episodes(self, model: Opened, features: Float, prompts: Float, labels: list[str]) -> None:
        request = self._request
        scorer: EpisodeScorer = model.stages
        if isinstance(model.stages, Model):
            session = model.stages
            scorer = BundleScorer(session.bundle, request.backend, session.precision)  # type: ignore[arg-type]
        plan = EpisodePlan(request.way, 1, episodes=request.episodes, seed=request.seed)
        answers = episode_answers(scorer, EncodedClips(features, labels, prompts), plan)
        columns = {"classes": answers.classes, "query": answers.query, "predicted": answers.predicted}
        self._save(EPISODES, names=np.array(answers.names), shot=np.array(answers.shot), **columns)

    def _given(self, stage: Stage, own: NDArray[Any]) -> NDArray[Any]:
        """The reference's output of a stage; its own for the reference itself."""
        found = None if self._reference is None else read_results(self._reference, stage)
        return own if found is None else found["chain"]

    def _save(self, step: str, **arrays: NDArray[Any]) -> None:
        write_results(self._folder, step, **arrays)


def _roles(labels: list[str]) -> tuple[list[list[int]], list[int]]:
    """Support clips of every class, one or two of its first ones, and all other clips as queries."""
    support: list[list[int]] = []
    for label in dict.fromkeys(labels):
        places = [place for place, name in enumerate(labels) if name == label]
        support.append(places[: min(_SHOTS, len(places) - 1)])
    chosen = {place for places in support for place in places}
    return support, [place for place in range(len(labels)) if place not in chosen]


def _encode(run: Any, pixels: NDArray[np.uint8]) -> Float:  # noqa: ANN401 - see `_Model.stages`
    """One clip per run, as a query comes: dynamic int8 takes its ranges from all of a run's frames."""
    return np.concatenate([run.encode_clips(clip[None]) for clip in pixels])


def _prototypes(run: Any, features: Float, prompts: Float, support: list[list[int]]) -> Float:  # noqa: ANN401 - too
    """Prototypes [C, V, T, D] of every class."""
    classes = zip(support, prompts, strict=True)
    return np.stack([run.prototypes(features[places], prompt[None]) for places, prompt in classes])


def main(folder: Path) -> int:
    """Do what the folder's request says; exit codes and error lines are those of the commands."""
    return guarded(Walk(folder, Request.read(folder)).run)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
