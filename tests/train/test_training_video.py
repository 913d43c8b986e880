"""Training on folders of real videos, with every strategy: results, stops at any time, bad clips, full disks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from full_disk import file_size_limit
from safetensors.torch import load_file
from signal_at import signal_at
from small_runs import tiny_backbone, video_recipe, write_clips, write_model

from m2df_runtime.errors import CheckFailed, InputError
from m2df_runtime.progress import silent, unseen
from m2df_train.commands.evaluate import cli as evaluate_command
from m2df_train.commands.train import cli as train_command
from m2df_train.data.augment import Augmentation
from m2df_train.data.episode_clips import EpisodeClips, EpisodePixels
from m2df_train.data.episodes import EpisodeSampler
from m2df_train.data.splits import load_splits
from m2df_train.interrupt import Interrupted
from m2df_train.model.checkpoint import load_checkpoint
from m2df_train.recipe.recipe import Recipe, dump_recipe, load_recipe
from m2df_train.training.processes import Processes
from m2df_train.training.run_report import Result
from m2df_train.training.trainer import train

STRATEGIES = ["frozen", "adapter", "full"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("videos") / "clips")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model") / "vit", tiny_backbone("vit"))


@pytest.fixture
def recipe(clips: Path, model: str) -> Recipe:
    return video_recipe(clips, model)


def with_values(recipe: Recipe, **sections: dict[str, Any]) -> Recipe:
    data = recipe.model_dump(mode="json")
    for name, values in sections.items():
        data[name] |= values
    return Recipe.model_validate(data)


def run(recipe: Recipe, folder: Path, progress: Any = None) -> Result:
    result = train(recipe, folder, progress or silent, Processes(recipe.train.precision))
    assert result is not None
    return result


class StopsAt:
    """Progress that sends this process Ctrl-C when so many episodes are done, or their validation begins.

    Those that an earlier run did count.
    """

    def __init__(self, done: int, note: str = "loss") -> None:
        self._left, self._note = done, note

    @contextmanager
    def __call__(self, title: str, total: int | None = None, /):
        yield self._advance if title == "episodes" else unseen

    def _advance(self, steps: int, note: str = "", /) -> None:
        self._left -= steps
        if self._left == 0 and note.startswith(self._note):
            os.kill(os.getpid(), signal.SIGINT)


def assert_same_weights(one: Path, other: Path) -> None:
    for name in ("last.safetensors", "best.safetensors"):
        a, b = load_file(one / name), load_file(other / name)
        assert a.keys() == b.keys()
        for key, value in a.items():
            torch.testing.assert_close(b[key], value, rtol=0, atol=0, msg=f"{name} {key}")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_folder_becomes_a_measured_checkpoint_and_a_stopped_run_the_same_one(
    recipe: Recipe, tmp_path: Path, strategy: str
) -> None:
    recipe = with_values(recipe, tuning={"strategy": strategy, "views": 2})
    result = run(recipe, tmp_path / "whole")
    assert result.splits.keys() == {"validation", "test"}
    saved = load_checkpoint(tmp_path / "whole")
    written = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert saved.source.measured == written
    assert written.keys() == {"validation", "validation_training_free", "test", "test_training_free"}
    assert written["test"].keys() == {"2-way 1-shot"}
    kept = recipe.model_dump(mode="json")
    del kept["data"]["root"], kept["data"]["split_files"]  # places on this machine do not travel with the weights
    kept["model"] = f"local-dir:{Path(kept['model'].removeprefix('local-dir:')).name}"
    assert saved.source.training["recipe"] == kept
    assert str(tmp_path.parent).encode() not in (tmp_path / "whole" / "best.safetensors").read_bytes()
    assert (tmp_path / "whole" / "recipe.yaml").read_text() == dump_recipe(recipe)
    assert saved.labels.keys() == set(load_splits(recipe).train.classes)
    assert list((tmp_path / "whole").glob("events.out.tfevents*"))

    before = tiny_backbone("vit").state_dict()  # what the model was made of
    moved = {name for name, value in saved.backbone.state_dict().items() if not torch.equal(value, before[name])}
    last = load_file(tmp_path / "whole" / "last.safetensors")
    moved |= {name for name in before if not torch.equal(last[f"backbone.{name}"], before[name])}
    assert all(name.startswith("clip.visual.") for name in moved)
    assert bool(moved) is (strategy != "frozen")

    folder = tmp_path / "stopped twice"
    for done, note in ((4, "loss"), (8, "validation")):
        with pytest.raises(Interrupted, match=rf"stopped after {done} of 12 episodes .*--out '{folder}' --resume"):
            run(recipe, folder, StopsAt(done, note))
        assert load_checkpoint(folder / "last.safetensors").source.recipe == "small"
    run(recipe, folder)
    assert_same_weights(folder, tmp_path / "whole")


def test_mixed_precision_and_checkpointed_gradients_train_all_the_same(recipe: Recipe, tmp_path: Path) -> None:
    tuning = {"strategy": "full", "gradient_checkpointing": True}
    run(with_values(recipe, tuning=tuning, train={"precision": "bf16"}), tmp_path)
    last = load_file(tmp_path / "last.safetensors")
    assert all(value.isfinite().all() for value in last.values())
    assert last["backbone.clip.visual.conv1.weight"].dtype == torch.float32


def test_a_run_depends_on_its_seed(recipe: Recipe, tmp_path: Path) -> None:
    for seed in (0, 1):
        run(recipe.model_copy(update={"seed": seed}), tmp_path / str(seed))
    one, other = (load_file(tmp_path / str(seed) / "last.safetensors") for seed in (0, 1))
    assert not torch.equal(one["head.local_view.context.conv1.weight"], other["head.local_view.context.conv1.weight"])


def drawn_of(recipe: Recipe, episodes: int = 12, workers: int = 0) -> list[EpisodePixels]:
    training = load_splits(recipe).train
    sampler = EpisodeSampler(training.labels, way=3, shot=1, query=1, seed=recipe.seed)
    source = EpisodeClips(
        training.clips, [sampler], Augmentation.of(recipe.clip.training, recipe.data), cache=None, workers=workers
    )
    return list(source.stream(range(episodes)))


def test_a_clip_that_cannot_be_read_is_replaced_by_another_of_its_class(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(str(recipe.data.root), damaged)
    training = load_splits(recipe).train
    bad = training.clips[0].name
    (damaged / bad).write_bytes(b"RIFF half a video")
    whole = drawn_of(recipe)
    recipe = with_values(recipe, data={"root": str(damaged)})
    found = drawn_of(recipe)
    hits = [n for n, pixels in enumerate(whole) if 0 in pixels.drawn.support or 0 in pixels.drawn.query]
    assert hits
    assert sum(bad in record.message for record in caplog.records) == 1
    for number, (one, other) in enumerate(zip(whole, found, strict=True)):
        assert (other.drawn.classes == one.drawn.classes).all()
        clips = [*other.drawn.support.ravel(), *other.drawn.query.ravel()]
        assert 0 not in clips and len(set(clips)) == len(clips)
        assert [training.clips[c].label for c in other.drawn.support.ravel()] == [
            training.classes[c] for c in other.drawn.classes
        ]
        if number not in hits:
            assert (other.support == one.support).all() and (other.query == one.query).all()

    with_workers = drawn_of(recipe, workers=2)
    for one, other in zip(found, with_workers, strict=True):
        assert (one.support == other.support).all() and (one.query == other.query).all()


def test_two_clips_of_a_class_that_cannot_be_read_are_replaced_by_different_ones(
    recipe: Recipe, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(str(recipe.data.root), damaged)
    training = load_splits(recipe).train
    assert training.labels[:4] == 4 * training.labels[:1]
    for clip in training.clips[:2]:
        (damaged / clip.name).write_bytes(b"RIFF half a video")
    whole = drawn_of(recipe, episodes=40)
    found = drawn_of(with_values(recipe, data={"root": str(damaged)}), episodes=40)
    both = 0
    for one, other in zip(whole, found, strict=True):
        drawn, used = ({*pixels.drawn.support.ravel(), *pixels.drawn.query.ravel()} for pixels in (one, other))
        assert len(used) == len(drawn)
        assert used & {0, 1, 2, 3} <= {2, 3}
        both += {0, 1} <= drawn
    assert both


def test_a_class_without_a_clip_that_can_be_read_ends_the_run_with_its_name(recipe: Recipe, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(str(recipe.data.root), damaged)
    name = load_splits(recipe).train.classes[0]
    for clip in (damaged / name).iterdir():
        clip.write_bytes(b"nothing")
    recipe = with_values(recipe, data={"root": str(damaged)}, tuning={"strategy": "full"})
    with pytest.raises(InputError, match=f"class '{name}' has too few clips that can be read"):
        run(recipe, tmp_path / "run")


def test_small_splits_have_smaller_episodes_and_a_test_is_not_needed(
    recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = run(with_values(recipe, data={"test": 0.0}, train={"way": 9}, evaluation={"way": 5}), tmp_path / "run")
    assert result.splits.keys() == {"validation"}
    assert [a.way for a in result.splits["validation"].trained] == [2]
    messages = [record.message for record in caplog.records]
    assert any("training: 6 classes" in message and "6-way instead of 9-way" in message for message in messages)
    assert sum("validation: 2 classes" in message for message in messages) == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_good_weights(
    recipe: Recipe, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    steep = with_values(recipe, train={"learning_rate": 1e30, "validate_every": 100})
    with pytest.raises(CheckFailed, match=rf"(loss|gradient) of episodes? [4-8].* last good weights are in {folder}"):
        run(steep, folder)
    assert all(value.isfinite().all() for value in load_file(folder / "last.safetensors").values())


def test_a_full_disk_leaves_the_old_files(recipe: Recipe, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(recipe, folder, StopsAt(4))
    before = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
    with file_size_limit(20_000), pytest.raises(OSError, match="too large") as error:
        run(recipe, folder)
    assert Path(error.value.filename).parent == folder
    assert {path.name: path.read_bytes() for path in folder.glob("*.safetensors")} == before
    assert not list(folder.glob(".*.m2df-tmp"))
    run(recipe, folder)


def test_state_of_another_strategy_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(with_values(recipe, tuning={"strategy": "full"}), tmp_path, StopsAt(4))
    with pytest.raises(InputError, match=r"episodic\.pt: cannot resume from it"):
        run(recipe, tmp_path)


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own, as a terminal would start it."""
    return subprocess.Popen(
        [sys.executable, "-m", "m2df_train.commands.train", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        start_new_session=True,
    )


@pytest.mark.soak
def test_killed_and_interrupted_commands_go_on_to_the_same_weights(recipe: Recipe, tmp_path: Path) -> None:
    # Long enough to be met in the middle; adapters, whose state is the most involved.
    long = with_values(recipe, tuning={"strategy": "adapter"}, train={"episodes": 16, "validate_every": 4})
    file = tmp_path / "long.yaml"
    file.write_text(dump_recipe(long))
    run(load_recipe(str(file)), tmp_path / "whole")
    out = tmp_path / "run"
    arguments = ("--recipe", file, "--out", out)

    saves = ("os.rename", r"/episodic\.pt$")
    killed = start(*arguments, **signal_at(tmp_path / "kill", *saves, signal.SIGKILL, nth=2, group=True))
    assert killed.communicate()[0] == "" and killed.returncode == -signal.SIGKILL
    assert (out / "episodic.pt").exists()

    # A terminal sends it to the workers too.
    stops = signal_at(tmp_path / "stop", *saves, signal.SIGINT, group=True)
    stopped = start(*arguments, "--resume", **stops)
    output, errors = stopped.communicate()
    assert (stopped.returncode, output) == (130, ""), errors
    assert "Traceback" not in errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("error: stopped after ") and f"--recipe {out / 'recipe.yaml'} --out {out} --resume" in last

    run(load_recipe(str(file)), out)
    assert_same_weights(out, tmp_path / "whole")


def test_commands_go_from_a_folder_to_weights_that_need_no_other_file(
    clips: Path, tmp_path: Path, run_here, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "model", tiny_backbone("vit"))
    values = video_recipe(clips, model, tuning={"strategy": "adapter"}).model_dump(mode="json")
    del values["data"]["root"]
    folder = os.path.relpath(model.removeprefix("local-dir:"), tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values | {"model": f"local-dir:{folder}"}))
    data = os.path.relpath(clips, tmp_path)
    monkeypatch.chdir(tmp_path)
    trained = run_here(train_command, "--recipe", "mine.yaml", "--data", data, "--out", "run", "--json")
    assert trained.returncode == 0, trained.stderr
    assert Path(json.loads(trained.stdout)["checkpoint"]) == Path("run", "best.safetensors")

    # From elsewhere, where the paths that were given lead nowhere, and without the model it began with.
    monkeypatch.chdir(ROOT)
    shutil.rmtree(tmp_path / "model")
    options = ("--split", "test", "--way", 2, "--episodes", 5, "--json")
    evaluated = run_here(evaluate_command, "--checkpoint", tmp_path / "run", *options)
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout)["split"] == "test"
