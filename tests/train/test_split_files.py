"""Lists of videos: both repositories' formats, made by hand and as published, and what is wrong with a line."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from m2df_runtime.errors import InputError
from m2df_train.data.split_files import SplitClip, find_split_file, read_split, video_stem
from m2df_train.public_benchmarks import BENCHMARKS, SPLITS, benchmark

# Method section 6.1: videos in train, val, test, and the fewest and most of a class in train and in test.
PUBLISHED = {
    ("clip-fsar", "kinetics100"): ((6400, 1200, 2400), (100, 100), (100, 100)),
    ("clip-mdmf", "kinetics100"): ((6574, 1200, 2461), (100, 108), (100, 108)),
}
for _repository in ("clip-fsar", "clip-mdmf"):
    PUBLISHED |= {
        (_repository, "ssv2-full"): ((67013, 1926, 2857), (156, 3170), (17, 272)),
        (_repository, "ssv2-small"): ((6400, 1200, 2400), (100, 100), (100, 100)),
        (_repository, "ucf101"): ((9154, 1421, 2745), (100, 164), (109, 166)),
        (_repository, "hmdb51"): ((4280, 1194, 1292), (102, 548), (103, 232)),
    }


def written(path: Path, *lines: str, encoding: str = "utf-8", end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return path


def message(path: Path, dataset: str, split: str) -> str:
    with pytest.raises(InputError) as caught:
        read_split(path, dataset, split)
    return str(caught.value)


# --- the four formats -------------------------------------------------------------------------------------------------


def test_classes_by_name(tmp_path):
    path = written(
        tmp_path / "testlist03.txt",
        "fencing/AHF_Rapier_fencing_f_cm_np2_ba_bad_5",
        "kick ball/a.b_kick_ball_1",
        "kick_ball/c.AVI",
    )
    clips = read_split(path, "hmdb51", "test")
    assert clips == (
        SplitClip(0, "AHF_Rapier_fencing_f_cm_np2_ba_bad_5"),
        SplitClip(2, "a.b_kick_ball_1"),
        SplitClip(2, "c.AVI"),
    )
    assert [clip.stem for clip in clips] == ["AHF_Rapier_fencing_f_cm_np2_ba_bad_5", "a.b_kick_ball_1", "c"]


def test_names_with_commas_parentheses_and_apostrophes(tmp_path):
    names = (
        "Twisting (wringing) something wet until water comes out",
        "Letting something roll up a slanted surface, so it rolls back down",
    )
    path = written(tmp_path / "list.txt", *(f"{name}/7{index}" for index, name in enumerate(names)))
    clips = read_split(path, "ssv2-small", "test")
    assert [benchmark("ssv2-small").classes("test")[clip.class_id].folder for clip in clips] == list(names)
    path = written(tmp_path / "list.txt", "Poking something so lightly that it doesn't or almost doesn't move/5")
    assert read_split(path, "ssv2-small", "train") == (SplitClip(16, "5"),)


def test_ssv2_label_numbers(tmp_path):
    path = written(tmp_path / "testlist03.txt", "126/195025", "0/5", "158/6")
    assert read_split(path, "ssv2-full", "test") == (SplitClip(18, "195025"), SplitClip(0, "5"), SplitClip(23, "6"))


def test_class_ids_with_video_ids(tmp_path):
    path = written(tmp_path / "train_few_shot.txt", "train8/78687", "train50/42326")
    for dataset in ("ssv2-full", "ssv2-small"):
        assert read_split(path, dataset, "train") == (SplitClip(8, "78687"), SplitClip(50, "42326"))


def test_class_ids_with_paths(tmp_path):
    path = written(tmp_path / "val_few_shot.txt", "val0//val_256/baking_cookies/-514AQUrSow.mp4")
    (clip,) = read_split(path, "kinetics100", "val")
    assert (clip.class_id, clip.video, clip.stem) == (0, "val_256/baking_cookies/-514AQUrSow.mp4", "-514AQUrSow")


def test_byte_order_mark_windows_line_ends_and_empty_lines(tmp_path):
    path = written(tmp_path / "l.txt", "", "test0/1", "", "test1/2", "", encoding="utf-8-sig", end="\r\n")
    assert [clip.video for clip in read_split(path, "ssv2-full", "test")] == ["1", "2"]


def test_video_names_may_hold_any_character(tmp_path):
    names = ["(Rad)Schlag_die_Bank!", "#20_Rhythm;&=", "体操 宙返り", "line\u2028separator", "file.name.v2"]
    path = written(tmp_path / "l.txt", *(f"cartwheel/{name}" for name in names))
    assert [clip.stem for clip in read_split(path, benchmark("hmdb51"), "val")] == names


@pytest.mark.parametrize(
    ("name", "stem"),
    [("a.avi", "a"), ("a.WEBM", "a"), ("a", "a"), ("a.b", "a.b"), ("v1.2.mp4", "v1.2"), ("a.jpg", "a.jpg")],
)
def test_only_suffixes_of_videos_are_cut_off(name, stem):
    assert video_stem(name) == stem


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "dataset", "split", "expected"),
    [
        (["fencing/a", "skating/b"], "hmdb51", "test", "line 2: 'skating' is no class of hmdb51"),
        (["fencing/a", "wave/b"], "hmdb51", "test", "line 2: 'wave' is a class of split train, not test"),
        (["fencing/a", "", "fencing"], "hmdb51", "test", "line 3: 'fencing' is not like class/video"),
        (["fencing/"], "hmdb51", "test", "line 1: 'fencing/' is not like class/video"),
        (["1/a"], "ssv2-full", "test", "line 1: '1' is no class of ssv2-full"),
        (["test0/1", "test24/2"], "ssv2-full", "test", "line 2: 'test24/2' has class 24; ssv2-full has 24 classes in"),
        (["test0/1", "val0/2"], "ssv2-full", "test", "line 2: 'val0/2' is of split val, not test"),
        (["test0/1", "126/2"], "ssv2-full", "test", "line 2: '126/2' is not like test0/123"),
        (["test0/1", "test0//b/2.mp4"], "ssv2-full", "test", "line 2: 'test0//b/2.mp4' is not like test0/123"),
        (["test0//videos/fencing/1.avi", "test0/2"], "hmdb51", "test", "line 2: 'test0/2' is not like test0//folder"),
        (["test1//videos/fencing/1.avi"], "hmdb51", "test", "is not in the folder of class 1, 'kick'"),
        (["test0//videos/Punch/1.avi"], "hmdb51", "test", "is not in the folder of class 0, 'fencing'"),
        (["test0/1", "test1/2", "test0/1"], "ssv2-full", "test", "line 3: 'test0/1' is on line 1 already"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, lines, dataset, split, expected):
    path = written(tmp_path / "list.txt", *lines)
    text = message(path, dataset, split)
    assert text.startswith(f"{path}, line ")
    assert expected in text
    assert text.endswith(f"(expected a list of {dataset}, {split})")


def test_files_that_are_no_lists(tmp_path):
    assert message(tmp_path / "none.txt", "hmdb51", "test").startswith(f"{tmp_path / 'none.txt'}: No such file")
    assert "the list is empty" in message(written(tmp_path / "empty.txt", "", ""), "hmdb51", "test")
    latin = written(tmp_path / "latin.txt", "fencing/a", "fencing/\xe9", encoding="latin-1")
    assert f"{latin}, line 2: not UTF-8 text" in message(latin, "hmdb51", "test")
    assert str(tmp_path) in message(tmp_path, "hmdb51", "test")  # a folder


# --- finding a list ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "test_few_shot.txt",
        "testlist03.txt",
        "testlist07.txt",
        "ssv2_full/test_few_shot.txt",
        "ssv2_OTAM/testlist07.txt",
    ],
)
def test_lists_are_found_in_the_folder_and_in_the_benchmarks_own(tmp_path, name):
    path = written(tmp_path / name, "test0/1")
    assert find_split_file(tmp_path, "ssv2-full", "test") == path
    assert find_split_file(tmp_path, "ssv2-full", "val") is None


def test_lists_of_another_benchmark_are_not_taken(tmp_path):
    written(tmp_path / "ssv2_small" / "test_few_shot.txt", "test0/1")
    assert find_split_file(tmp_path, "ssv2-full", "test") is None


def test_a_missing_folder_of_lists(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no such folder \(--split-files names"):
        find_split_file(tmp_path / "nowhere", "ssv2-full", "test")


# --- the published lists ----------------------------------------------------------------------------------------------


@cache
def published(path: Path, dataset: str, split: str) -> tuple[SplitClip, ...]:
    """A published list; the longest have tens of thousands of lines, and several tests ask for each."""
    return read_split(path, dataset, split)


@pytest.mark.parametrize("name", BENCHMARKS)
@pytest.mark.parametrize("repository", ["clip-fsar", "clip-mdmf"])
def test_published_lists(shared_dir, repository, name):
    folder = shared_dir / "splits" / repository
    lists = [published(find_split_file(folder, name, split), name, split) for split in SPLITS]
    counts = [Counter(clip.class_id for clip in clips) for clips in lists]
    videos, train, test = PUBLISHED[repository, name]
    assert tuple(map(len, lists)) == videos
    assert tuple(map(len, counts)) == tuple(len(benchmark(name).classes(split)) for split in SPLITS)
    assert (min(counts[0].values()), max(counts[0].values())) == train
    assert (min(counts[2].values()), max(counts[2].values())) == test
    if (repository, name) != ("clip-mdmf", "kinetics100"):  # its extra entries are in no other list
        for split, count in zip(SPLITS, counts, strict=True):
            assert {item.id: item.videos for item in benchmark(name).classes(split)} == count


@pytest.mark.parametrize("name", ["hmdb51", "ucf101", "ssv2-full", "ssv2-small"])
def test_both_repositories_list_the_same_videos_of_the_same_classes(shared_dir, name):
    for split in SPLITS:
        found = [
            published(find_split_file(shared_dir / "splits" / repository, name, split), name, split)
            for repository in ("clip-fsar", "clip-mdmf")
        ]
        assert {(clip.class_id, clip.stem) for clip in found[0]} == {(clip.class_id, clip.stem) for clip in found[1]}


@pytest.mark.parametrize("split", SPLITS)
def test_both_lists_of_ssv2_full_in_one_folder_agree(shared_dir, split):
    folder = shared_dir / "splits" / "clip-mdmf" / "ssv2_OTAM"
    lists = [published(folder / f"{split}list{kind}.txt", "ssv2-full", split) for kind in ("03", "07")]
    assert lists[0] == lists[1]


def test_the_second_kinetics_test_list_of_clip_mdmf(shared_dir):
    path = shared_dir / "splits" / "clip-mdmf" / "kinetics_CMN" / "testlist03_bb.txt"
    assert Counter(clip.class_id for clip in published(path, "kinetics100", "test")) == Counter(
        {item.id: item.videos for item in benchmark("kinetics100").classes("test")}
    )


def test_every_published_file_is_read(shared_dir):
    names = {"hmdb": "hmdb51", "ucf": "ucf101", "kinetics": "kinetics100"}
    ssv2 = {"ssv2_full": "ssv2-full", "ssv2_OTAM": "ssv2-full", "ssv2_small": "ssv2-small", "ssv2_CMN": "ssv2-small"}
    files = sorted((shared_dir / "splits").rglob("*.txt"))
    assert len(files) == 34
    for file in files:
        dataset = ssv2.get(file.parent.name) or next(n for k, n in names.items() if file.parent.name.startswith(k))
        split = next(split for split in SPLITS if file.name.startswith(split))
        assert published(file, dataset, split)
