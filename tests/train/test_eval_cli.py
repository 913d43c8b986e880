"""`m2df-eval`: what it prints, compares and refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from colour_clips import write_colour_clip, write_colour_folder
from onnx import numpy_helper
from tiny_bundle import SIZE, write_bundle, write_support

from m2df_runtime.errors import ClipError
from m2df_runtime.files import sha256_bytes
from m2df_train.cache.features import FeatureCache
from m2df_train.commands.evaluate import cli
from m2df_train.data.clips import folder_clips
from m2df_train.evaluation.models import encode_for_all, open_bundle

KEYS = [
    "model", "accuracy", "ci95", "per_class", "confusion", "backend", "precision", "encode_seconds", "episode_seconds",
    "way", "shot", "query", "episodes", "seed", "groups", "split", "clips_used", "skipped", "excluded",
]  # fmt: skip


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colour_folder(tmp_path_factory.mktemp("colours"))


@pytest.fixture
def evaluate(run_here):
    """Run the command in this process; gives exit code, stdout and stderr."""

    def run(*args: object) -> tuple[int, str, str]:
        done = run_here(cli, *args)
        return done.returncode, done.stdout, done.stderr

    return run


def make_unreadable(clip: Path) -> None:
    """No video any more, but of the same size and modification time."""
    stat = clip.stat()
    clip.write_bytes(bytes(stat.st_size))
    os.utime(clip, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_features_belong_to_the_file_of_the_precision_in_use(colours, bundle_copy, tmp_path):
    """The same reference beside another int8 file: features of the old one would be taken for those of the new one."""
    clips, cache = folder_clips(colours)[0][:3], FeatureCache(tmp_path / "cache", 1 << 30)
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    for graph, info in manifest["graphs"].items():
        shutil.copy(bundle_copy / f"{graph}.onnx", bundle_copy / f"{graph}.int8.onnx")
        info["files"]["int8"] = {**info["files"]["fp32"], "path": f"{graph}.int8.onnx"}

    def features(divisor: float, precision: str) -> np.ndarray:
        model = onnx.load_model_from_string((bundle_copy / "visual.onnx").read_bytes())
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(divisor), "c0"))
        data = model.SerializeToString()
        (bundle_copy / "visual.int8.onnx").write_bytes(data)
        manifest["graphs"]["visual"]["files"]["int8"].update(sha256=sha256_bytes(data), bytes=len(data))
        (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
        (found,) = encode_for_all([open_bundle(bundle_copy, "cpu", precision, {})], clips, {}, cache)
        return np.array(found.features.values)

    first = features(255.0, "int8")
    np.testing.assert_allclose(features(510.0, "int8"), first / 2, rtol=1e-5)
    np.testing.assert_array_equal(features(255.0, "int8"), first)
    np.testing.assert_array_equal(features(510.0, "fp32"), first)
    assert len(list((tmp_path / "cache").rglob("*.npy"))) == 2  # one for each file, and fp32's is that of the first


def test_the_command_on_a_bundle(colours, tiny_bundle, run_module):
    options = ("--bundle", tiny_bundle, "--data", colours, "--way", 3, "--shot", "1,2", "--episodes", 60)
    done = run_module("m2df_train.commands.evaluate", *options, "--groups", "^([a-z]+)_", "--json")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["shot"] for record in records] == [1, 2]
    for record in records:
        assert list(record) == KEYS
        assert (record["accuracy"], record["ci95"], record["per_class"]["red"]) == (100.0, 0.0, 100.0)
        assert record["confusion"]["red"] == {"dark blue": 0, "green": 0, "red": 60}
        assert (record["split"], record["seed"], record["groups"]) == (None, 0, "^([a-z]+)_")
        assert (record["skipped"], record["excluded"], record["clips_used"]) == (["red/dora_1.avi"], {}, 18)
    assert "dora_1.avi" in done.stderr
    assert done.stderr.count("warning:") == 1


def test_tables(colours, tiny_bundle, evaluate):
    options = ("--bundle", tiny_bundle, "--data", colours, "--classes", "red,green", "--way", 2, "--episodes", 10)
    code, out, _ = evaluate(*options, "--per-class", "--confusion")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("2-way 1-shot, 10 episodes: 100.00 ± 0.00 %  (cpu fp32, 12 clips, encoding ")
    assert lines[1:] == [
        "  red    100.00 %",
        "  green  100.00 %",
        "  % of a class's queries (row) by answer (column)",
        "              1    2",
        "  1 red     100    .",
        "  2 green     .  100",
    ]


def test_two_models_on_the_same_episodes(tiny_bundle, tmp_path, evaluate):
    data = write_support(tmp_path / "squares", shots=5)  # squares of a colour that cross the picture
    narrow = write_bundle(tmp_path / "narrow", short_side=12 * SIZE)  # sees the middle, where few of them pass
    options = ("--data", data, "--way", 3, "--shot", 2, "--episodes", 80, "--json")
    code, out, _ = evaluate("--compare", narrow, tiny_bundle, *options)
    assert code == 0
    record = json.loads(out)
    a, b = (json.loads(evaluate("--bundle", bundle, *options)[1]) for bundle in (narrow, tiny_bundle))
    for side, expected in (("a", a), ("b", b)):
        same = [key for key in record[side] if "seconds" not in key]
        assert {key: record[side][key] for key in same} == {key: expected[key] for key in same}
    assert record["difference"] == pytest.approx(b["accuracy"] - a["accuracy"])
    low, high = record["interval"]
    assert low < record["difference"] < high
    assert record["gains"] == pytest.approx(
        {name: b["per_class"][name] - a["per_class"][name] for name in a["per_class"]}
    )
    queries = record["queries"]
    assert sum(queries.values()) == 240
    assert queries["both"] + queries["only_a"] == round(2.4 * a["accuracy"])
    assert queries["both"] + queries["only_b"] == round(2.4 * b["accuracy"])
    assert sum(clip["gained"] for clip in record["clips"]) == queries["only_b"] > 0
    assert sum(clip["lost"] for clip in record["clips"]) == queries["only_a"]
    assert {clip["name"].split("/")[0] for clip in record["clips"]} <= {"red", "green", "blue"}
    assert (record["shot"], record["skipped"], record["resamples"]) == (2, [], 10_000)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory as training leaves it: a checkpoint, and the recipe of six classes of three clips."""
    import torch

    from m2df_runtime.bundle.manifest import SourceInfo
    from m2df_runtime.pixels.spec import ClipSpec
    from m2df_train.model.backbone import load_backbone
    from m2df_train.model.checkpoint import Checkpoint, save_checkpoint
    from m2df_train.model.heads import build_head
    from m2df_train.model.run_folder import BEST
    from m2df_train.recipe.recipe import dump_recipe, load_recipe

    torch.manual_seed(0)
    backbone = load_backbone("m2df-tiny")
    spec = ClipSpec(frames=4, size=backbone.image_size)
    head = build_head("training-free", backbone.dim, spec.frames)
    run = tmp_path_factory.mktemp("runs") / "mine"
    save_checkpoint(run / BEST, Checkpoint(backbone, head, spec, "{}", {}, SourceInfo(model="m2df-tiny")))
    data = tmp_path_factory.mktemp("data")
    for red in range(6):
        for clip in range(3):
            write_colour_clip(data / f"red{red}" / f"{clip}.avi", (40 * red, 100, 100 + clip))
    shots = ("train.shots=[1]", "evaluation.shots=[1]", "train.queries=1")
    (run / "recipe.yaml").write_text(dump_recipe(load_recipe("custom", [f"data.root={data}", *shots])))
    return run


def test_a_bundle_and_a_checkpoint_side_by_side(colours, tiny_bundle, trained, run_here):
    options = ("--data", colours, "--way", 3, "--episodes", 40, "--query", 2)
    done = run_here(cli, "--compare", trained, tiny_bundle, *options)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "3-way 1-shot, 40 episodes, the same for both models"
    assert lines[1].startswith(f"  A  {trained}: ")
    assert "(torch-cpu fp32, 18 clips" in lines[1]
    assert "(cpu fp32, 18 clips" in lines[2]
    assert lines[3].startswith("  B - A: +")
    assert "95 % interval" in lines[3]
    assert sum(int(word) for word in lines[4].replace(",", "").split() if word.isdigit()) == 240
    assert done.stderr.count("warning:") == 1  # the second model is not given the clip the first cannot read


def test_prompts_are_those_of_the_classes_that_both_models_can_read(tiny_bundle, tmp_path):
    data = write_colour_folder(tmp_path / "data")
    cache, clips = FeatureCache(tmp_path / "cache", 1 << 30), folder_clips(data)[0]
    first = open_bundle(tiny_bundle, "cpu", None, {})
    second = open_bundle(write_bundle(tmp_path / "narrow", short_side=2 * SIZE), "cpu", None, {})
    encode_for_all([first], clips, {}, cache)
    for clip in (data / "dark blue").iterdir():  # now only the first model has features of the first class
        make_unreadable(clip)
    for found in encode_for_all([first, second], clips, {}, cache):
        features, scorer = found.features, found.subject.scorer
        assert list(dict.fromkeys(features.labels)) == ["green", "red"]
        assert len(features.values) == len(features.labels) == len(features.names) == 12
        assert {name.split("/")[0] for name in features.skipped} == {"dark blue", "red"}
        np.testing.assert_array_equal(found.prompts, scorer.encode_texts(["a photo of green", "a photo of red"]))
        assert not np.allclose(*found.prompts)


@pytest.mark.parametrize("wanted", [("--precision", "int8"), ("--backend", "tensorrt")])
def test_a_checkpoint_has_no_engine(trained, colours, evaluate, wanted):
    for model in (("--checkpoint", trained), ("--compare", trained, trained)):
        code, _, err = evaluate(*model, "--data", colours, "--way", 3, *wanted)
        assert code == 2
        assert f"a checkpoint runs in PyTorch and fp32; export it to measure {wanted[1]}" in err


def test_splits_of_a_run_are_those_of_its_recipe(trained, tmp_path, evaluate):
    from m2df_train.data.splits import load_splits
    from m2df_train.recipe.recipe import load_recipe

    splits = load_splits(load_recipe(str(trained / "recipe.yaml")))
    options = ("--way", 2, "--episodes", 5, "--json")
    code, out, err = evaluate("--checkpoint", trained, "--split", "validation,test", *options)
    assert (code, err) == (0, "")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["split"] for record in records] == ["validation", "test"]
    assert [set(record["per_class"]) for record in records] == [set(splits.validation.texts), set(splits.test.texts)]
    elsewhere = shutil.copytree(load_recipe(str(trained / "recipe.yaml")).data.root, tmp_path / "elsewhere")
    code, out, _ = evaluate("--checkpoint", trained, "--split", "test", "--data", elsewhere, *options)
    assert code == 0
    assert json.loads(out)["per_class"] == records[1]["per_class"]
    shutil.copy(trained / "best.safetensors", tmp_path / "alone.safetensors")
    code, _, err = evaluate("--checkpoint", tmp_path / "alone.safetensors", "--split", "test")
    assert code == 2
    assert f"there is no {tmp_path / 'recipe.yaml'}" in err


def unreadable(clip: Path) -> None:
    raise ClipError(clip, "gone")


def test_features_are_kept_for_the_next_run(tiny_bundle, tmp_path, evaluate, monkeypatch):
    data = write_colour_folder(tmp_path / "data")
    options = ("--bundle", tiny_bundle, "--data", data, "--way", 3, "--episodes", 10, "--json")
    first = json.loads(evaluate(*options, "--cache", tmp_path / "cache")[1])
    monkeypatch.setattr("m2df_train.data.clips.open_source", unreadable)
    again = json.loads(evaluate(*options, "--cache", tmp_path / "cache")[1])
    assert again["skipped"] == ["red/dora_1.avi"]
    assert (again["accuracy"], again["confusion"]) == (first["accuracy"], first["confusion"])
    for anew in (("--no-cache",), ("--cache", tmp_path / "other")):
        code, _, err = evaluate(*options, *anew)
        assert (code, "gone" in err) == (2, True)
    monkeypatch.undo()
    make_unreadable(data / "green" / "ben_1.avi")  # which is noticed, though its size and time are the old ones
    again = json.loads(evaluate(*options, "--cache", tmp_path / "cache")[1])
    assert again["skipped"] == ["green/ben_1.avi", "red/dora_1.avi"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--way", 4), "4-way episodes need 4 classes"),
        (("--shot", 6), "1 found; too few clips: 'dark blue' has 6, 'green' has 6"),
        (("--classes", "red,pink"), "no class 'pink'"),
        (("--groups", "(x"), "not a regular expression"),
        (("--checkpoint", "b"), "--bundle and --checkpoint exclude each other"),
        (("--compare", "a", "b"), "--bundle and --compare exclude each other"),
        (("--shot", "1,many"), "not a number or a list"),
        (("--split", "1"), "'1' is not one of train, validation, test"),
        (("--cache", "a", "--no-cache"), "--cache and --no-cache exclude each other"),
        (("--labels", "missing.csv"), "missing.csv"),
        (("--precision", "int8"), "no int8 visual graph"),
    ],
)
def test_what_is_refused(options, message, colours, tiny_bundle, evaluate):
    code, out, err = evaluate("--bundle", tiny_bundle, "--data", colours, "--way", 3, *options)
    assert (code, out) == (2, "")
    assert message in err


def test_a_comparison_names_the_model_that_cannot_be_read(colours, tiny_bundle, bundle_copy, tmp_path, evaluate):
    options = ("--data", colours, "--way", 3)
    (bundle_copy / "manifest.json").write_text("{")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"weights")
    for other, message in {
        "missing": "no such bundle or checkpoint",
        "empty": "neither a bundle nor a run",
        "bundle": "manifest.json is not JSON",
        "broken.safetensors": "not a checkpoint",
    }.items():
        code, out, err = evaluate("--compare", tiny_bundle, tmp_path / other, *options)
        assert (code, out) == (2, "")
        assert err.splitlines()[-1].startswith(f"error: {tmp_path / other}: ")
        assert message in err


def test_classes_with_too_few_clips_are_left_out(colours, tiny_bundle, tmp_path, evaluate):
    data = Path(shutil.copytree(colours, tmp_path / "data"))
    write_colour_clip(data / "white" / "anna_1.avi", (255, 255, 255))
    code, out, err = evaluate("--bundle", tiny_bundle, "--data", data, "--way", 3, "--episodes", 10, "--json")
    assert code == 0
    assert "warning: 1-shot: classes with too few clips are not drawn: white (1)" in err
    assert json.loads(out)["excluded"] == {"white": 1}
    assert set(json.loads(out)["per_class"]) == {"red", "green", "dark blue"}
    code, _, err = evaluate("--bundle", tiny_bundle, "--data", data, "--way", 4)
    assert code == 2
    assert "3 found; too few clips: 'white' has 1" in err


def test_folders_without_clips(tiny_bundle, tmp_path, evaluate):
    for folder in ("data", "data/one", "data/two"):
        (tmp_path / folder).mkdir()
        code, out, err = evaluate("--bundle", tiny_bundle, "--data", tmp_path / "data")
        assert (code, out) == (2, "")
        assert f"error: {tmp_path / 'data'}: " in err
        assert "support" not in err


def test_scores_that_are_not_numbers_are_a_failed_check(colours, tmp_path, evaluate):
    bundle = write_bundle(tmp_path / "bundle", support_weight=np.nan)
    code, out, err = evaluate("--bundle", bundle, "--data", colours, "--way", 3, "--episodes", 5)
    assert (code, out) == (1, "")
    assert "gives numbers that are not finite" in err
