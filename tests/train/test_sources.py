"""Where a run's clips come from: folders, benchmarks and generated actions, in splits that share no class."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest

from m2df_runtime.errors import InputError
from m2df_train.data.clips import generated_clips
from m2df_train.data.splits import DIVISION, ClipSet, Splits, keep_division, load_splits
from m2df_train.recipe.recipe import Recipe, load_recipe
from m2df_train.synthetic import split_actions

SMALL = ["train.queries=1", "train.shots=[1]", "evaluation.shots=[1]", "evaluation.queries=1"]


def recipe_for(root: Path, *settings: str) -> Recipe:
    return load_recipe("demo", [f"data.root={root}", "data.clips=null", "evaluation.clips=null", *SMALL, *settings])


def make_folder(root: Path, **classes: int) -> Path:
    """Class folders with so many clips, which are listed but not read."""
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.mp4").write_bytes(b"x" * (number + 1))
    return root


def names(splits: Splits) -> list[set[str]]:
    return [set(part.classes) for part in (splits.train, splits.validation, splits.test)]


def as_pairs(part: ClipSet) -> list[tuple[str, str]]:
    return [(clip.label, clip.name) for clip in part.clips]


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "data", **{f"class_{letter}": 3 for letter in "abcdefghij"})


def test_a_folder_is_divided_into_classes_by_seed(ten):
    splits = load_splits(recipe_for(ten))
    train, validation, test = names(splits)
    assert (len(train), len(validation), len(test)) == (6, 2, 2)
    assert len(train | validation | test) == 10
    assert names(load_splits(recipe_for(ten))) == [train, validation, test]
    others = [names(load_splits(recipe_for(ten, f"seed={seed}"))) for seed in range(1, 5)]
    assert any(other != [train, validation, test] for other in others)
    assert splits.train.texts == {name: name.replace("_", " ") for name in sorted(train)}
    assert splits.train.labels == tuple(name for name in splits.train.texts for _ in range(3))
    assert names(load_splits(recipe_for(ten, "data.test=0.4", "data.validation=0.3")))[0] < train | validation | test


def test_another_class_leaves_the_division_of_the_others(ten, tmp_path):
    before = load_splits(recipe_for(ten, "data.validation=0.4", "data.test=0"))
    make_folder(tmp_path / "data", class_k=3)
    after = load_splits(recipe_for(ten, "data.validation=0.4", "data.test=0"))
    moved = (set(before.validation.classes) ^ set(after.validation.classes)) - {"class_k"}
    assert len(moved) <= 1


def test_a_run_keeps_its_division_when_the_folder_grows(ten, tmp_path, caplog):
    run = tmp_path / "run"
    before = load_splits(recipe_for(ten))
    keep_division(before, run)
    make_folder(ten, class_k=3, class_l=3, class_m=3)
    with caplog.at_level(logging.WARNING):
        assert names(load_splits(recipe_for(ten), run)) == names(before)
    assert "class_k, class_l, class_m" in caplog.text
    keep_division(load_splits(recipe_for(ten)), run)  # what is there stays
    assert names(load_splits(recipe_for(ten), run)) == names(before)
    gone = before.train.classes[0]
    (ten / gone).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"classes of the run are not there: {gone}"):
        load_splits(recipe_for(ten), run)
    (run / DIVISION).write_text('["no mapping"]')
    with pytest.raises(InputError, match=r"splits\.json: damaged"):
        load_splits(recipe_for(ten), run)


def test_a_folder_with_a_long_tail_is_divided_by_the_classes_that_can_be_used(tmp_path):
    root = make_folder(
        tmp_path / "data", **{f"rich_{n}": 6 for n in range(20)}, **{f"poor_{n:02d}": 1 for n in range(40)}
    )
    train, validation, test = names(load_splits(recipe_for(root)))
    assert len(validation) == len(test) == 4  # a fifth of the twenty
    assert sum(name.startswith("rich") for name in train) == 12


@pytest.mark.parametrize(("count", "settings", "sizes"), [(6, [], (2, 2, 2)), (4, ["data.test=0"], (2, 2, 0))])
def test_few_classes(tmp_path, count, settings, sizes):
    root = make_folder(tmp_path / "data", **{f"c{number}": 2 for number in range(count)})
    splits = load_splits(recipe_for(root, *settings))
    assert tuple(map(len, names(splits))) == sizes
    assert bool(splits.test.clips) == bool(sizes[2])


@pytest.mark.parametrize(
    ("count", "settings", "reason"),
    [
        (5, [], r"5 classes; training needs 2 at least, validation 2, test 2 .*data.test=0"),
        (3, ["data.test=0"], "3 classes; training needs 2 at least, validation 2"),
        (10, ["data.validation=0"], "data.validation is 0"),
        (10, ["data.validation=0.6", "data.test=0.4"], "validation 6, test 4"),
    ],
)
def test_impossible_divisions(tmp_path, count, settings, reason):
    root = make_folder(tmp_path / "data", **{f"c{number}": 2 for number in range(count)})
    with pytest.raises(InputError, match=reason):
        load_splits(recipe_for(root, *settings))


def test_classes_that_cannot_be_measured_train(tmp_path, caplog):
    root = make_folder(tmp_path / "data", a=2, b=5, c=5, d=2, e=5, f=5, g=1, h=2)
    with caplog.at_level(logging.WARNING, "m2df_train"):
        splits = load_splits(recipe_for(root, "evaluation.shots=[1,4]"))
    assert set(splits.validation.classes) | set(splits.test.classes) == {"b", "c", "e", "f"}
    assert [record.getMessage() for record in caplog.records] == [
        "training: classes without the 2 clips that 1 support and 1 query clips need are not drawn: g (1)"
    ]


def test_too_few_clips_everywhere(tmp_path):
    root = make_folder(tmp_path / "data", a=9, b=2, c=2, d=2)
    with pytest.raises(InputError, match=r"training: [01] of 2 classes have the 6 clips .*lower train.shots"):
        load_splits(recipe_for(root, "data.test=0", "train.queries=5"))


def test_split_folders(tmp_path):
    root = tmp_path / "data"
    make_folder(root / "Train", a=2, b=2, c=2, d=2, e=2)
    make_folder(root / "test", f=2, g=2)
    make_folder(root / "validation", h=2, i=2)
    assert names(load_splits(recipe_for(root))) == [set("abcde"), set("hi"), set("fg")]
    assert load_splits(recipe_for(root)).test.clips[0].name == "f/0.mp4"
    (root / "validation").rename(root / "unrelated")
    train, validation, test = names(load_splits(recipe_for(root)))
    assert (len(train), len(validation), train | validation, test) == (3, 2, set("abcde"), set("fg"))
    (root / "test").rename(root / "other")
    assert names(load_splits(recipe_for(root))) == [train, validation, set()]


def test_a_stray_clip_beside_class_folders_takes_nothing_away(tmp_path):
    for split in ("train", "val", "test"):
        make_folder(tmp_path / "data" / split, **{f"{split}_{n}": 3 for n in range(3)})
    (tmp_path / "data" / "test" / "overview.mp4").write_bytes(b"x")
    assert [len(part) for part in names(load_splits(recipe_for(tmp_path / "data")))] == [3, 3, 3]


def test_a_class_may_be_called_train(tmp_path):
    root = make_folder(tmp_path / "data", train=2, test=2, bus=2, ferry=2)
    (root / "train" / "frames").mkdir()
    splits = load_splits(recipe_for(root, "data.test=0"))
    assert set.union(*names(splits)) == {"train", "test", "bus", "ferry"}


def test_a_class_in_two_splits_is_refused(tmp_path):
    for split in ("train", "val"):
        make_folder(tmp_path / split, a=2, b=2)
    with pytest.raises(InputError, match=r"class 'a' is in train and val.*give .*train alone"):
        load_splits(recipe_for(tmp_path))


def test_caps_are_chosen_by_seed(tmp_path):
    root = make_folder(tmp_path / "data", **{f"c{number}": 12 for number in range(6)})
    caps = ["data.clips=5", "evaluation.clips=3"]
    splits, again, other = (load_splits(recipe_for(root, *caps, f"seed={seed}")) for seed in (0, 0, 1))
    assert len(splits.train.clips) == 10 and len(splits.validation.clips) == len(splits.test.clips) == 6
    assert as_pairs(splits.train) == as_pairs(again.train) != as_pairs(other.train)
    numbers = [
        int(name.partition("/")[2][:-4]) for label, name in as_pairs(splits.train) if label == splits.train.classes[0]
    ]
    assert numbers == sorted(numbers) and numbers != [0, 1, 2, 3, 4]


def test_texts_from_a_table(ten, tmp_path):
    (tmp_path / "labels.csv").write_text("class,text\nclass_a,juggling three balls\n")
    splits = load_splits(recipe_for(ten, f"data.labels={tmp_path / 'labels.csv'}"))
    texts = splits.train.texts | splits.validation.texts | splits.test.texts
    assert texts["class_a"] == "juggling three balls" and texts["class_b"] == "class b"


def test_a_benchmark_has_its_own_splits_and_spelling(tmp_path):
    classes = ("BlowDryHair", "Archery", "HandstandPushups", "Shotput", "Punch", "Surfing")
    root = make_folder(tmp_path / "UCF-101", **dict.fromkeys(classes, 2))
    settings = ["data.dataset=ucf101"]
    splits = load_splits(recipe_for(root, *settings))
    assert names(splits) == [{"Archery", "BlowDryHair"}, {"HandstandPushups", "Shotput"}, {"Punch", "Surfing"}]
    assert list(splits.train.texts.values()) == ["Archery", "Blow Dry Hair"]
    official = load_splits(recipe_for(root, *settings, "data.labels=official"))
    assert official.train.texts["BlowDryHair"] == "Blow DryHair"
    (tmp_path / "labels.csv").write_text("class,text\nBlowDryHair,drying hair\n")
    own = load_splits(recipe_for(root, *settings, f"data.labels={tmp_path / 'labels.csv'}"))
    assert list(own.train.texts.values()) == ["Archery", "drying hair"]


def test_generated_actions():
    recipe = load_recipe("demo", ["data.composed=3", "data.clips=8", "evaluation.clips=6"])
    splits = load_splits(recipe)
    named, composed = splits.train.classes[:-3], splits.train.classes[-3:]
    assert list(named) == [action.name for action in split_actions("train")]
    assert all(name.startswith("composed_") for name in composed)
    everything = [*splits.train.clips, *splits.validation.clips, *splits.test.clips]
    assert len({clip.key for clip in everything}) == len(everything)
    assert [clip.key for clip in load_splits(recipe).train.clips] == [clip.key for clip in splits.train.clips]
    clip = splits.train.clips[-1]
    first, second = clip.open(), pickle.loads(pickle.dumps(clip)).open()
    np.testing.assert_array_equal(first.read([0, 7]), second.read([0, 7]))
    assert splits.train.texts[clip.label] == first.action.text  # type: ignore[attr-defined]


def test_test_clips_are_those_that_evaluation_takes():
    test = load_splits(load_recipe("demo", ["data.composed=0", "evaluation.clips=6"])).test
    assert [(c.label, c.name, c.key) for c in test.clips] == [(c.label, c.name, c.key) for c in generated_clips(6)]


def test_a_key_follows_the_content(tmp_path):
    root = make_folder(tmp_path / "data", a=2, b=2, c=2, d=2)
    (root / "a" / "frames").mkdir()
    for number in range(3):
        (root / "a" / "frames" / f"{number}.png").write_bytes(b"1")

    def keys() -> dict[str, str]:
        splits = load_splits(recipe_for(root, "data.test=0"))
        return {clip.name: clip.key for part in (splits.train, splits.validation) for clip in part.clips}

    before = keys()
    assert keys() == before
    (root / "a" / "0.mp4").write_bytes(b"other")
    (root / "a" / "frames" / "1.png").write_bytes(b"22")
    assert {name for name, key in keys().items() if before[name] != key} == {"a/0.mp4", "a/frames"}
