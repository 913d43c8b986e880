"""Whether a network trained to say "none of these" tells known queries from unknown ones better than the distance does.

    python -m benchmarks.none_logit

It corrects the distance, in episodes of composed actions that no part of the model has seen; a sixth of these actions
chooses its size and step. Generated validation actions are only compared on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.record import Machine, write
from benchmarks.ruled import described, ruled
from m2df_runtime.backends.model import Model
from m2df_runtime.bank.calibration import calibrate
from m2df_runtime.bundle.prompt_texts import LabelRules, prompt_embeddings
from m2df_runtime.commands.console import main_entry, progress
from m2df_train.cache.features import FeatureCache, identity_of
from m2df_train.data.clips import LabelledClip, generated_clips
from m2df_train.data.episodes import EpisodeIndices, EpisodeSampler
from m2df_train.data.generated import action_clips, pool_actions
from m2df_train.evaluation.features import encode
from m2df_train.evaluation.open_set import auroc
from m2df_train.synthetic import split_actions

Values = NDArray[np.float64]
SHOTS, WAY = (1, 5), 5  # of known classes; as many are unknown
HELD_OUT = 6  # of so many actions to learn from one
SIZES, STEPS, EVERY, BATCH, RESAMPLES = (8, 32), 400, 100, 256, 200
SEEN = {"statistics": False, "residuals": True}  # whether residuals take the place of statistics


@dataclass(frozen=True)
class Asked:
    """Queries of E episodes, N of each: the first half of known classes, the rest of unknown ones.

    Attributes:
        distances: To the best class [E, N].
        numbers: What the network sees of classes and distances [E, N, S], the distance first.
        residuals: The query's unit frames less those of the best class that they are aligned with [E, N, V, T, D].
        free: Scores without training, larger for what seems unknown [E, N].
    """

    distances: Values
    numbers: Values
    residuals: NDArray[np.float16]
    free: dict[str, Values]


class Clips:
    """Encoded clips of which banks and queries are drawn."""

    def __init__(self, model: Model, clips: Sequence[LabelledClip], rules: LabelRules, cache: Path | None) -> None:
        self._model, spec = model, model.bundle.manifest.clip
        identity = identity_of("none logit", str(described(model)), spec.model_dump_json())
        with progress("encoding", len(clips)) as advance:
            kept = FeatureCache(cache, 1 << 30)
            found = encode(model, clips, spec, cache=kept, identity=identity, advance=advance)
        self._values, self._labels = found.values, found.labels
        row = {name: place for place, name in enumerate(dict.fromkeys(found.labels))}
        self._prompts = prompt_embeddings(map(rules.prompts, row), model.encode_texts)
        owners = [row[label] for label in found.labels]
        alone = [model.prototypes(clip[None], self._prompts[[o]]) for clip, o in zip(found.values, owners, strict=True)]
        self._alone = np.stack(alone)  # [n, V, T, D]; a prototype is the mean of its clips'

    def asked(self, shot: int, episodes: int, query: int, seed: int) -> Asked:
        """Draw banks of `shot` clips of each class, and ask `query` clips of each known and unknown class."""
        sampler = EpisodeSampler(self._labels, way=2 * WAY, shot=shot, query=query, seed=seed)
        found = [self._episode(episode) for episode in sampler.episodes(episodes)]
        free = {name: np.stack([one.free[name] for one in found]) for name in found[0].free}
        distances, numbers = (np.stack([getattr(one, name) for one in found]) for name in ("distances", "numbers"))
        return Asked(distances, numbers, np.stack([one.residuals for one in found]), free)

    def _episode(self, episode: EpisodeIndices) -> Asked:
        support, texts = self._alone[episode.support[:WAY]], self._prompts[episode.classes[:WAY]]
        shot, prototypes = support.shape[1], support.mean(axis=1)  # (W, K, V, T, D) -> (W, V, T, D)
        scores = self._model.match(self._values[episode.query.ravel()], texts, prototypes)
        best, rows = scores.logits.argmax(axis=1), np.arange(len(scores.logits))
        every = scores.distances.sum(axis=1, dtype=np.float64)
        ordered, shares = np.sort(every, axis=1), torch.from_numpy(scores.logits).double().softmax(dim=1).numpy()
        distances, entropy = every[rows, best], -(shares * np.log(shares + 1e-12)).sum(axis=1)
        spread = np.square(_unit(support) - _unit(prototypes)[:, None]).mean(axis=(1, 2, 3, 4))[best]
        numbers = [distances, scores.distances[rows, 0, best], ordered[:, 1], every.mean(axis=1), every.std(axis=1)]
        numbers += [entropy, shares.max(axis=1), scores.selected[rows, best], spread, np.full(len(best), shot)]
        free = {"largest probability": -shares.max(axis=1), "entropy": entropy, "lead": distances - ordered[:, 1]}
        if shot > 1:
            free["distance by the support's spread"] = distances / np.sqrt(spread)
            calibration = calibrate(self._model, list(self._values[episode.support[:WAY]]), texts, prototypes)
            assert calibration is not None  # classes have two clips or more
            free["distance less the bank's threshold"] = distances - calibration.rejection().threshold
        tokens, near = _unit(scores.tokens), _unit(prototypes)[best]  # (Q, V, T, D)
        weights = np.exp(10 * np.einsum("qvtd,qvnd->qvtn", tokens, near))
        aligned = np.einsum("qvtn,qvnd->qvtd", weights / weights.sum(axis=-1, keepdims=True), near)
        return Asked(distances, np.stack(numbers, axis=1), (tokens - aligned).astype(np.float16), free)


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-6)


class NoneLogit(nn.Module):
    """The distance, and a correction to it that begins at nothing; `frame` is V * D where it sees residuals, else 0."""

    def __init__(self, numbers: int, frame: int, size: int) -> None:
        super().__init__()
        self.frame = nn.Sequential(nn.Linear(frame, size), nn.GELU(), nn.Dropout(0.2)) if frame else None
        self.last = nn.Linear(size, 1)
        self.seen = nn.Sequential(nn.Linear(1 + size if frame else numbers, size), nn.GELU(), nn.Dropout(0.1))
        self.scale = nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.last.weight)

    def forward(self, numbers: Tensor, residuals: Tensor) -> Tensor:
        """Numbers [N, S] of mean 0 and width 1, residuals [N, V, T, D] -> [N]."""
        seen = numbers
        if self.frame is not None:
            moved = 10 * residuals.float().abs().transpose(1, 2).flatten(2)  # (N, T, V * D)
            seen = torch.cat([numbers[:, :1], self.frame(moved).mean(dim=1)], dim=1)
        corrected: Tensor = self.last(self.seen(seen)).squeeze(1) + self.scale * numbers[:, 0]
        return corrected


Score = Callable[[Asked], Values]


def trained(moves: bool, size: int, seed: int, train: Sequence[Asked], held: Sequence[Asked]) -> tuple[float, Score]:
    """Mean AUROC on held-out actions of the weights that were best there, and their score of queries [E, N]."""
    torch.manual_seed(seed)
    numbers = torch.cat([torch.from_numpy(one.numbers).float().flatten(0, 1) for one in train])
    moved = torch.cat([torch.from_numpy(one.residuals).flatten(0, 1) for one in train])
    shapes = [one.distances.shape for one in train]
    unknown = torch.cat([torch.arange(n).ge(n // 2).float().repeat(e) for e, n in shapes])
    middle, width = numbers.mean(dim=0), numbers.std(dim=0) + 1e-6
    net = NoneLogit(numbers.shape[1], moved.shape[1] * moved.shape[3] if moves else 0, size)
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.01)

    def score(asked: Asked) -> Values:
        rows = torch.from_numpy(asked.numbers).float().flatten(0, 1), torch.from_numpy(asked.residuals).flatten(0, 1)
        with torch.inference_mode():
            parts = zip(rows[0].split(4096), rows[1].split(4096), strict=True)
            found = torch.cat([net.eval()((part - middle) / width, residual) for part, residual in parts])
        return found.double().numpy().reshape(asked.distances.shape)

    reached, weights = -1.0, net.state_dict()
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(unknown), (BATCH,))
        logits = net.train()((numbers[chosen] - middle) / width, moved[chosen])
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, unknown[chosen]).backward()
        optimizer.step()
        if step % EVERY == 0 and (now := float(np.mean([area(score(one)) for one in held]))) > reached:
            reached, weights = now, {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(weights)
    return reached, score


def area(scores: Values) -> float:
    """AUROC of queries [E, N] with one threshold for all."""
    return auroc(*np.split(scores, 2, axis=1))


def compared(runs: Sequence[Values], distances: Values) -> dict[str, Any]:
    """Mean AUROC of some runs' scores [E, N], by how much it leads that of the distance, and the least and most lead.

    In percent; the lead has its 95 % bootstrap interval over episodes.
    """
    drawn = np.random.default_rng(0).integers(0, len(distances), (RESAMPLES, len(distances)))
    leads = [np.mean([area(run[rows]) for run in runs]) - area(distances[rows]) for rows in drawn]
    each = [100 * (area(run) - area(distances)) for run in runs]
    bounds = (np.mean(each), *(100 * np.percentile(leads, [2.5, 97.5])))
    lead, runs_lead = ([round(float(value), 2) for value in values] for values in (bounds, (min(each), max(each))))
    return {"auroc": round(100 * area(distances) + float(np.mean(each)), 2), "leads_by": lead, "runs": runs_lead}


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", type=click.Path(path_type=Path), help="Bundle [newest, else the shipped one].")
@click.option("--actions", type=click.IntRange(2 * WAY * HELD_OUT), default=240, help="Composed actions to learn from.")
@click.option("--episodes", type=click.IntRange(1), default=500, help="Episodes of each number of shots.")
@click.option("--seeds", type=click.IntRange(1), default=3, help="Trainings of each network.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder that keeps features for later runs [none].")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/none_logit.json].")
def cli(bundle: Path | None, actions: int, episodes: int, seeds: int, cache: Path | None, out: Path | None) -> None:
    """Train on training actions, compare on validation actions."""
    machine, model = Machine(), ruled(bundle)
    rules = model.bundle.manifest.text.rules
    # The shipped head was trained on the composed actions of seed 0.
    composed = pool_actions(actions, seed=1)[len(split_actions("train")) :]
    texts = rules.over({action.name: action.text for action in composed})
    held = composed[::HELD_OUT]
    known = Clips(model, action_clips([one for one in composed if one not in held], 8), texts, cache)
    other = Clips(model, action_clips(held, 8), texts, cache)
    validation = Clips(model, generated_clips(30, split="val"), rules, cache)
    train, trial = ([clips.asked(shot, episodes, 2, seed=1) for shot in SHOTS] for clips in (known, other))
    scores: dict[str, list[Score]] = {}
    sizes = {}
    for name, seen in SEEN.items():
        first = {size: trained(seen, size, 0, train, trial) for size in SIZES}
        sizes[name] = size = max(first, key=lambda size: first[size][0])
        scores[name] = [first[size][1], *(trained(seen, size, seed, train, trial)[1] for seed in range(1, seeds))]
    results: dict[str, dict[str, Any]] = {}
    for place, shot in enumerate(SHOTS):
        asked = validation.asked(shot, episodes, 3, seed=7)
        found = {name: compared([values], asked.distances) for name, values in asked.free.items()}
        for name, runs in scores.items():
            on_held = compared([run(trial[place]) for run in runs], trial[place].distances)
            found[name] = {**compared([run(asked) for run in runs], asked.distances), "held_out": on_held}
        results[f"{shot}-shot"] = {"distance": round(100 * area(asked.distances), 2), "others": found}
        click.echo(f"{shot}-shot: {results[f'{shot}-shot']}")
    settings = {"actions": actions, "episodes": episodes, "seeds": seeds, "way": WAY, "unknown": WAY, "sizes": sizes}
    about = {"bundle": described(model), "environment": machine.environment()}
    click.echo(f"written: {write('none_logit', {'results': results, 'settings': settings, **about}, out)}")


if __name__ == "__main__":
    main_entry(cli)
