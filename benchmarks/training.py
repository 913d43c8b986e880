"""A training episode with a frozen backbone, from features encoded once, against encoding its clips in every episode.

    python -m benchmarks.training

The second is what the public code of both methods does, which trains the image tower too. Weights are
random: they change no time. Only some frames are encoded, and their time is multiplied. One thread each,
so processor time is what an idle core would take, also where others use the machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter, process_time
from typing import TYPE_CHECKING

import click

from benchmarks.models import VIT
from benchmarks.record import Machine, percentiles, write
from m2df_runtime.commands.console import main_entry

if TYPE_CHECKING:
    from m2df_train.training.episodic import Hooks

WAY, SHOT, QUERIES, FRAMES = 5, 5, 5, 8
CLASSES, CLIPS = 64, 20
PER_UPDATE = 16
PER_RUN = 1000  # episodes that the totals are for
TARGET_MINUTES = 10.0  # for them


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock and of processor time."""

    wall: float
    cpu: float


def timed(run: Callable[[], object]) -> Cost:
    """What a call costs."""
    wall, cpu = perf_counter(), process_time()
    run()
    return Cost(perf_counter() - wall, process_time() - cpu)


def head_updates(head: str, dim: int, updates: int) -> list[Cost]:
    """Cost of an episode in each update of the episodic stage, optimiser included, from features of random numbers."""
    import torch

    from m2df_train.cache.encoding import FeaturePool
    from m2df_train.data.episodes import EpisodeSampler
    from m2df_train.model.backbone import load_backbone
    from m2df_train.model.heads import build_head
    from m2df_train.model.options import head_options
    from m2df_train.recipe.sections import TrainStage, TuningRecipe
    from m2df_train.training.episode_source import FeatureEpisodes
    from m2df_train.training.episodic import EpisodicStage
    from m2df_train.training.processes import Processes
    from m2df_train.training.tuning import TrainedModel, TunedBackbone

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(CLASSES * CLIPS, 1, FRAMES, dim, generator=generator)
    labels = tuple(f"class {number}" for number in range(CLASSES) for _ in range(CLIPS))
    pool = FeaturePool(features, labels, torch.randn(CLASSES, dim, generator=generator))
    sampler = EpisodeSampler(labels, way=WAY, shot=SHOT, query=QUERIES)
    processes = Processes()
    # The backbone takes no part: features come from the pool.
    tuned = TunedBackbone(load_backbone("m2df-tiny"), TuningRecipe(strategy="frozen"))
    model = TrainedModel(build_head(head, dim, FRAMES, head_options(head)), tuned)  # type: ignore[arg-type]
    stage = TrainStage(episodes=updates * PER_UPDATE, per_update=PER_UPDATE, way=WAY, shots=(SHOT,), queries=QUERIES)
    stage = stage.model_copy(update={"validate_every": stage.episodes})
    ticks: list[Cost] = []
    source = FeatureEpisodes(pool, [sampler], 0.0, processes.device)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state.pt"
        EpisodicStage(model, source, stage, processes, _hooks(ticks), seed=0, state_file=state).run()
    pairs = pairwise(ticks)
    return [Cost((b.wall - a.wall) / PER_UPDATE, (b.cpu - a.cpu) / PER_UPDATE) for a, b in pairs]


def _hooks(ticks: list[Cost]) -> Hooks:
    """Nothing is validated or saved; every update leaves the time."""
    from m2df_train.interrupt import Stop
    from m2df_train.training.episodic import Hooks, Update, Validation

    def validate(stop: Stop) -> Validation:
        if not ticks:  # before the first update
            ticks.append(Cost(perf_counter(), process_time()))
        return {SHOT: 0.0}

    def updated(update: Update) -> None:
        ticks.append(Cost(perf_counter(), process_time()))

    def ignore(*values: object) -> None:
        return None

    return Hooks(validate, ignore, updated, ignore)


def encoding(model: str, frames: int, rounds: int) -> dict[str, list[Cost]]:
    """Cost of encoding some frames, and of encoding them with the gradients of the image tower."""
    import torch

    from m2df_train.model.backbone import load_backbone

    backbone = load_backbone(model)
    pixels = torch.randn(frames, 3, backbone.image_size, backbone.image_size)

    def forward() -> None:
        with torch.inference_mode():
            backbone.visual(pixels)

    def backward() -> None:
        backbone.visual(pixels).square().mean().backward()
        backbone.zero_grad()

    forward()
    backward()
    return {
        "forward": [timed(forward) for _ in range(rounds)],
        "backward": [timed(backward) for _ in range(rounds)],
    }


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--head", type=click.Choice(["m2df", "clip-fsar"]), default="m2df")
@click.option("--model", default=VIT, help="Image tower; the head gets features of its size.")
@click.option("--updates", type=click.IntRange(2), default=8, help=f"Updates of {PER_UPDATE} episodes.")
@click.option("--frames", type=click.IntRange(1), default=8, help="Frames encoded at once.")
@click.option("--rounds", type=click.IntRange(2), default=3, help="Times they are encoded.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/training.json].")
def cli(head: str, model: str, updates: int, frames: int, rounds: int, out: Path | None) -> None:
    """Time training episodes from features, and the encoding they save."""
    import torch

    from m2df_train.model.backbone import import_open_clip

    machine = Machine()
    torch.set_num_threads(1)
    dim = int(import_open_clip().get_model_config(model)["embed_dim"])
    of_head = head_updates(head, dim, updates)
    of_encoding = encoding(model, frames, rounds)
    per_episode = WAY * (SHOT + QUERIES) * FRAMES / frames
    costs = {"head": of_head}
    costs |= {name: [Cost(c.wall * per_episode, c.cpu * per_episode) for c in cs] for name, cs in of_encoding.items()}
    seconds = {
        name: {"wall": percentiles([c.wall for c in cs]), "cpu": percentiles([c.cpu for c in cs])}
        for name, cs in costs.items()
    }
    cpu = {name: values["cpu"]["p50"] for name, values in seconds.items()}
    ratios = {
        "frozen_and_encoded_every_time": (cpu["forward"] + cpu["head"]) / cpu["head"],
        "image_tower_trained_too": (cpu["backward"] + cpu["head"]) / cpu["head"],
    }
    minutes = {name: round(PER_RUN * value / 60, 1) for name, value in cpu.items()}
    record = {
        "seconds_per_episode": seconds,
        "core_minutes_per_1000_episodes": minutes,
        "target_minutes": TARGET_MINUTES,
        "ratio_cpu": {name: round(value, 1) for name, value in ratios.items()},
        "settings": {
            "head": head, "model": model, "dim": dim, "way": WAY, "shot": SHOT, "queries": QUERIES, "frames": FRAMES,
            "episodes_per_update": PER_UPDATE, "updates": updates,
            "encoded": f"{frames} frames, {rounds} times; times {per_episode:g} for the frames of an episode",
        },
        "environment": machine.environment(),
    }  # fmt: skip
    click.echo(
        f"{WAY}-way {SHOT}-shot, {QUERIES} queries per class, {head} on {model}: "
        f"{PER_RUN} episodes from features take one core {minutes['head']} minutes"
    )
    click.echo(
        f"processor time with encoding in every episode: {ratios['frozen_and_encoded_every_time']:.0f} times as much,"
        f" with training of the image tower {ratios['image_tower_trained_too']:.0f} times (extrapolated)"
    )
    click.echo(f"written: {write('training', record, out)}")


if __name__ == "__main__":
    main_entry(cli)
