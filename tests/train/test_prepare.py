"""`m2df-train prepare` and `find_clips` on downloads of real small videos, in the layouts people have."""

from __future__ import annotations

import json
import logging
import os
import shutil
import unicodedata
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tiny_bundle import write_clip

from m2df_runtime.bundle.prompt_texts import LabelRules
from m2df_runtime.errors import InputError
from m2df_train.commands.evaluate import cli as evaluate_command
from m2df_train.commands.train import cli as train_command
from m2df_train.data.benchmark_clips import find_clips
from m2df_train.data.completeness import check_download
from m2df_train.public_benchmarks import SPLITS, benchmark

# Two classes of every split of UCF101, two videos each.
UCF = {
    "train": {"Archery": ("v_Archery_g01_c01", "v_Archery_g01_c02"), "YoYo": ("v_YoYo_g01_c01", "v_YoYo_g02_c01")},
    "val": {
        "HandstandPushups": ("v_HandStandPushups_g01_c01", "v_HandStandPushups_g01_c02"),
        "Shotput": ("v_Shotput_g01_c01", "v_Shotput_g01_c02"),
    },
    "test": {"Punch": ("v_Punch_g01_c01", "v_Punch_g02_c01"), "Surfing": ("v_Surfing_g01_c01", "v_Surfing_g01_c02")},
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.avi", frames=4)


@pytest.fixture(scope="module")
def webm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=12)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for value in (20, 80, 140):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), value, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Lists of UCF in CLIP-MDMF's format."""
    for split, classes in UCF.items():
        lines = [f"{name}/{video}" for name, videos in classes.items() for video in videos]
        write_list(tmp_path / "lists" / f"{split}list03.txt", lines)
    return tmp_path / "lists"


def write_list(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def put(clip: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(clip, path))


def put_frames(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.new("RGB", (16, 16), (40 * index, 90, 30)).save(folder / f"frame_{index:04d}.jpg")
    return folder


def videos(*splits: str) -> list[tuple[str, str]]:
    return [(name, video) for split in splits or SPLITS for name, found in UCF[split].items() for video in found]


def ucf_download(root: Path, clip: Path) -> Path:
    for name, video in videos():
        put(clip, root / name / f"{video}.avi")
    return root


# --- layouts ----------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "videos by class": lambda root, clip, name, video: put(clip, root / name / f"{video}.avi"),
    "under videos/": lambda root, clip, name, video: put(clip, root / "videos" / name / f"{video}.mp4"),
    "by split and class": lambda root, clip, name, video: put(clip, root / "all" / "x_256" / name / f"{video}.MKV"),
    "side by side": lambda root, clip, name, video: put(clip, root / f"{video}.mp4"),
    "frames by class": lambda root, clip, name, video: put_frames(root / name / video),
    "frames side by side": lambda root, clip, name, video: put_frames(root / "jpegs" / video),
    "classes spelt otherwise": lambda root, clip, name, video: put(
        clip, root / f"{name[:4]}_{name[4:]}".upper() / f"{video}.avi"
    ),
    "files spelt otherwise": lambda root, clip, name, video: put(
        clip, root / name / f"{video.replace('Stand', 'stand')}.avi"
    ),
}


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_complete_download_in_every_layout(tmp_path, clip, lists, layout, decode):
    for name, video in videos():
        LAYOUTS[layout](tmp_path / "root", clip, name, video)
    report = check_download(tmp_path / "root", "ucf101", lists, decode=decode)
    assert (report.lacking, report.unreadable, report.extra) == (0, 0, {})
    assert [(part.split, part.classes_found, part.found, part.expected) for part in report.splits] == [
        (split, 2, 4, 4) for split in SPLITS
    ]
    for split in SPLITS:
        clips = find_clips(tmp_path / "root", "ucf101", split, lists)
        assert [item.label for item in clips] == [name for name, _ in videos(split)]
        assert [item.name.split("/")[1].split(".")[0].lower() for item in clips] == [
            v.lower() for _, v in videos(split)
        ]
        assert all(item.open().n_frames >= 3 for item in clips)


def test_ssv2_as_downloaded(tmp_path, webm):
    for video in ("78687", "195025", "3"):
        put(webm, tmp_path / "root" / f"{video}.webm")
    write_list(tmp_path / "ssv2_OTAM" / "trainlist03.txt", ["19/78687"])
    write_list(tmp_path / "ssv2_OTAM" / "testlist03.txt", ["126/195025"])
    write_list(tmp_path / "ssv2_OTAM" / "vallist03.txt", ["20/3"])
    report = check_download(tmp_path / "root", "ssv2-full", tmp_path, decode=True)
    assert (report.lacking, report.unreadable, report.extra) == (0, 0, {})
    (found,) = find_clips(tmp_path / "root", "ssv2-full", "test", tmp_path)
    assert (found.label, found.name) == (
        "Showing something next to something",
        "Showing something next to something/195025.webm",
    )
    assert found.open().n_frames == 3


@pytest.mark.parametrize(
    "folder", ["126", "Showing something next to something", "Showing_[something]_next_to_[something]"]
)
def test_ssv2_in_class_folders_needs_no_lists(tmp_path, folder):
    put_frames(tmp_path / folder / "195025")
    (found,) = find_clips(tmp_path, "ssv2-full", "test")
    assert found.label == "Showing something next to something"


def test_numbered_frame_folders_are_clips_and_no_labels(tmp_path):
    put_frames(tmp_path / "root" / "126")  # a video whose id is the number of a label
    write_list(tmp_path / "lists" / "testlist07.txt", ["test0/126"])
    (found,) = find_clips(tmp_path / "root", "ssv2-full", "test", tmp_path / "lists")
    assert found.label == "Approaching something with your camera"


def test_kinetics_names_with_and_without_seconds(tmp_path, clip):
    root = tmp_path / "k400"
    put(clip, root / "val_256" / "busking" / "-abcDEF_123_000012_000022.mp4")
    put(clip, root / "val_256" / "busking" / "plainYOUTUB.mp4")
    put(clip, root / "val_256" / "busking" / "sameVideo01_000001_000011.mp4")
    put(clip, root / "val_256" / "busking" / "CASEmatters_000001_000011.mp4")
    write_list(
        tmp_path / "lists" / "test_few_shot.txt",
        [
            "test1//train_256/busking/-abcDEF_123.mp4",
            "test1//train_256/busking/plainYOUTUB_000100_000110.mp4",
            "test1//train_256/busking/sameVideo01_000500_000510.mp4",
            "test1//train_256/busking/caseMATTERS_000001_000011.mp4",
        ],
    )
    (part,) = check_download(root, "kinetics100", tmp_path / "lists").splits
    (busking,) = [item for item in part.classes if item.expected]
    assert busking.missing == (
        "train_256/busking/sameVideo01_000500_000510.mp4",
        "train_256/busking/caseMATTERS_000001_000011.mp4",
    )
    names = [item.name for item in find_clips(root, "kinetics100", "test", tmp_path / "lists")]
    assert names == ["busking/-abcDEF_123_000012_000022.mp4", "busking/plainYOUTUB.mp4"]


def test_the_listed_path_decides_between_copies_and_videos_come_before_frames(tmp_path, clip, lists):
    root = ucf_download(tmp_path / "root", clip)
    put(clip, root / "a_copy" / "Punch" / "v_Punch_g01_c01.avi")
    put_frames(root / "frames" / "Punch" / "v_Punch_g01_c01")
    write_list(lists / "testlist03.txt", [])
    write_list(lists / "test_few_shot.txt", ["test12//a_copy/Punch/v_Punch_g01_c01.avi"])
    (found,) = find_clips(root, "ucf101", "test", lists)
    assert Path(found.open.args[0]) == root / "a_copy" / "Punch" / "v_Punch_g01_c01.avi"
    write_list(lists / "test_few_shot.txt", ["test12//b/Punch/v_Punch_g01_c01.mp4"])
    (found,) = find_clips(root, "ucf101", "test", lists)
    assert Path(found.open.args[0]).is_file()
    report = check_download(root, "ucf101", lists)
    assert report.lacking == 0
    assert report.extra == {"Punch": 1, "Surfing": 2}  # the copies are the listed video, too


def test_a_clip_in_the_folder_of_another_class_is_not_it(tmp_path, clip, lists):
    root = ucf_download(tmp_path / "root", clip)
    (root / "Punch" / "v_Punch_g01_c01.avi").rename(root / "Surfing" / "v_Punch_g01_c01.avi")
    report = check_download(root, "ucf101", lists)
    assert {item.folder: item.missing for part in report.splits for item in part.classes if item.missing} == {
        "Punch": ("v_Punch_g01_c01",)
    }
    assert report.extra == {"Surfing": 1}


def test_unicode_names_composed_or_not(tmp_path, clip):
    name = unicodedata.normalize("NFC", "Schlägt das Rad_cartwheel_体操")
    root = tmp_path / "Räder"
    put(clip, root / "cartwheel" / (unicodedata.normalize("NFD", name.replace(" ", "_")) + ".avi"))
    write_list(tmp_path / "lists" / "vallist03.txt", [f"cartwheel/{name}"])
    assert check_download(root, "hmdb51", tmp_path / "lists").lacking == 0
    assert len(find_clips(root, "hmdb51", "val", tmp_path / "lists")) == 1


def test_hidden_files_links_in_circles_and_pictures_beside_videos(tmp_path, clip, lists):
    root = ucf_download(tmp_path / "root", clip)
    (root / "Punch" / "loop").symlink_to(root, target_is_directory=True)
    put(clip, root / "__MACOSX" / "Punch" / "v_Punch_g01_c01.avi")
    put(clip, root / "Punch" / "._v_Punch_g01_c01.avi")
    Image.new("RGB", (8, 8)).save(root / "Punch" / "folder.jpg")
    (root / "Punch" / "readme.txt").write_text("about")
    report = check_download(root, "ucf101", lists)
    assert (report.lacking, report.unreadable, report.extra) == (0, 0, {})


def test_a_linked_download(tmp_path, clip, lists):
    ucf_download(tmp_path / "disk", clip)
    (tmp_path / "root").mkdir()
    for name in os.listdir(tmp_path / "disk"):
        (tmp_path / "root" / name).symlink_to(tmp_path / "disk" / name, target_is_directory=True)
    assert check_download(tmp_path / "root", "ucf101", lists).lacking == 0


# --- what is missing, unreadable, extra -------------------------------------------------------------------------------


def test_missing_unreadable_and_extra(tmp_path, clip, lists):
    root = ucf_download(tmp_path / "root", clip)
    (root / "Archery" / "v_Archery_g01_c02.avi").unlink()
    shutil.rmtree(root / "Surfing")
    (root / "Punch" / "v_Punch_g01_c01.avi").write_bytes(b"no video")
    (root / "Punch" / "v_Punch_g02_c01.avi").write_bytes(b"")
    put(clip, root / "Punch" / "v_Punch_g09_c09.avi")
    put(clip, root / "Knitting" / "v_Knitting_g01_c01.avi")
    put(clip, root / "loose.avi")
    report = check_download(root, "ucf101", lists)
    missing = {item.folder: item.missing for part in report.splits for item in part.classes if item.missing}
    assert missing == {"Archery": ("v_Archery_g01_c02",), "Surfing": ("v_Surfing_g01_c01", "v_Surfing_g01_c02")}
    assert report.lacking == 3
    test = report.splits[2]
    assert (test.classes_expected, test.classes_found, test.expected, test.found) == (2, 1, 4, 2)
    assert list(test.unreadable) == ["Punch/v_Punch_g01_c01.avi", "Punch/v_Punch_g02_c01.avi"]
    assert "not a readable video" in test.unreadable["Punch/v_Punch_g01_c01.avi"]
    assert "empty" in test.unreadable["Punch/v_Punch_g02_c01.avi"]
    assert report.extra == {".": 1, "Knitting": 1, "Punch": 1}


def test_only_decoding_finds_what_cannot_be_decoded(tmp_path, clip, lists):
    root = ucf_download(tmp_path / "root", clip)
    for path in sorted((root / "Punch").iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    put_frames(root / "Punch" / "v_Punch_g01_c01", count=40)
    (root / "Punch" / "v_Punch_g01_c01" / "frame_0030.jpg").write_bytes(b"no picture")
    put_frames(root / "Punch" / "v_Punch_g02_c01")
    assert check_download(root, "ucf101", lists).unreadable == 0
    report = check_download(root, "ucf101", lists, decode=True)
    assert list(report.splits[2].unreadable) == ["Punch/v_Punch_g01_c01"]
    assert "frame_0030.jpg" in report.splits[2].unreadable["Punch/v_Punch_g01_c01"]


def test_splits_without_a_list_are_left_out(tmp_path, clip, lists):
    root = ucf_download(tmp_path / "root", clip)
    (lists / "trainlist03.txt").unlink()
    put(clip, root / "Punch" / "v_Punch_g09_c09.avi")
    report = check_download(root, "ucf101", lists)
    assert [part.split for part in report.splits] == ["val", "test"]
    assert report.extra == {"Punch": 1}  # Archery may be in the list that is not there
    with pytest.raises(InputError, match=r"lists: no list of ucf101, train \(--split-files"):
        find_clips(root, "ucf101", "train", lists)


def test_without_lists_the_published_numbers_count(tmp_path, clip):
    root = ucf_download(tmp_path / "root", clip)
    report = check_download(root, "ucf101")
    assert report.lacking == 13320 - 12
    punch = next(item for item in report.splits[2].classes if item.folder == "Punch")
    assert (punch.expected, punch.found, punch.lacking, punch.missing) == (160, 2, 158, ())
    assert all(part.list_file is None for part in report.splits)


def test_without_lists_frames_of_a_video_do_not_count_twice(tmp_path, clip):
    root = ucf_download(tmp_path / "root", clip)
    put_frames(root / "frames" / "Punch" / "v_Punch_g01_c01")
    assert [item.name for item in find_clips(root, "ucf101", "test")] == [
        f"{name}/{video}.avi" for name, video in videos("test")
    ]


def test_progress_is_told(tmp_path, clip, lists):
    root = ucf_download(tmp_path / "root", clip)
    listed: list[int] = []
    read: list[int] = []
    totals: list[int] = []
    check_download(
        root, "ucf101", lists, listed=listed.append, reading=lambda total: totals.append(total) or read.append
    )
    assert (sum(listed), totals, sum(read)) == (12, [12], 12)


# --- find_clips -------------------------------------------------------------------------------------------------------


def test_find_clips_warns_once_of_what_is_missing(tmp_path, clip, lists, caplog):
    root = ucf_download(tmp_path / "root", clip)
    shutil.rmtree(root / "Surfing")
    with caplog.at_level(logging.WARNING):
        clips = find_clips(root, "ucf101", "test", lists)
    assert [item.label for item in clips] == ["Punch", "Punch"]
    assert caplog.messages[0] == f"{root}: 2 of 4 videos are missing; m2df-train prepare names them"


def test_find_clips_of_some_classes(tmp_path, clip, lists):
    root = ucf_download(tmp_path / "root", clip)
    assert {item.label for item in find_clips(root, "ucf101", "test", lists, ["Surfing"])} == {"Surfing"}
    with pytest.raises(InputError, match="ucf101, test: no class 'Archery'"):
        find_clips(root, "ucf101", "test", lists, ["Archery"])


def test_find_clips_without_any(tmp_path, clip, lists):
    put(clip, tmp_path / "flat" / "v_Knitting_g01_c01.avi")
    with pytest.raises(InputError, match=r"holds no clip of ucf101, test \(m2df-train prepare"):
        find_clips(tmp_path / "flat", "ucf101", "test", lists)
    with pytest.raises(InputError, match=r"holds no clip of ucf101, test \(are its clips in no class folders"):
        find_clips(tmp_path / "flat", "ucf101", "test")


def test_texts_of_the_benchmark_stand_under_the_models_own():
    rules = LabelRules("{}!", {"ride_bike": "ride_bike", "mine": "my own"})
    rules = rules.completed(benchmark("hmdb51").texts())
    assert [rules.prompts(name)[0] for name in ("ride_bike", "shoot_bow", "mine")] == [
        "ride_bike!",
        "shoot bow!",
        "my own!",
    ]
    rules = LabelRules().completed(benchmark("ssv2-full").texts())
    assert rules.descriptions("Tipping something over") == ("Tipping [something] over",)


# --- the commands -----------------------------------------------------------------------------------------------------


def test_command_complete(tmp_path, clip, lists, run_here):
    root = ucf_download(tmp_path / "root", clip)
    done = run_here(train_command, "prepare", "--dataset", "ucf101", "--root", root, "--split-files", lists, "--decode")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["split", "classes", "videos", "missing", "unreadable"],
        *([split, "2/2", "4/4", "0", "0"] for split in SPLITS),
        ["complete"],
    ]


def test_command_incomplete(tmp_path, clip, lists, run_module, run_here):
    root = ucf_download(tmp_path / "root", clip)
    (root / "Archery" / "v_Archery_g01_c02.avi").unlink()
    shutil.rmtree(root / "Surfing")
    (root / "Punch" / "v_Punch_g01_c01.avi").write_bytes(b"no video")
    put(clip, root / "Knitting" / "体操.avi")
    arguments = ("prepare", "--dataset", "ucf101", "--root", root, "--split-files", lists)
    done = run_module("m2df_train.commands.train", *arguments, PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {root}: 3 of 12 videos are missing, 1 cannot be read (m2df-eval works with those that are there)\n"
    )
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["train", "2/2", "3/4", "1", "0"]
    assert lines[3].split() == ["test", "1/2", "2/4", "2", "1"]
    assert lines[4:6] == ["missing: train Archery: 1 of 2: v_Archery_g01_c02", "missing: test Surfing: all of 2"]
    assert lines[6].startswith("unreadable: Punch/v_Punch_g01_c01.avi: not a readable video")
    assert lines[7:] == ["extra: 1 clip of no split, in Knitting (1)"]

    done = run_here(train_command, *arguments, "--json")
    assert done.returncode == 1
    record = json.loads(done.stdout)
    assert (record["dataset"], record["root"], record["complete"]) == ("ucf101", str(root), False)
    assert record["extra"] == {"Knitting": 1}
    train, _, test = record["splits"]
    assert train["missing_videos"] == {"Archery": ["v_Archery_g01_c02"]}
    assert (test["missing"], test["videos"], test["videos_found"]) == ({"Surfing": 2}, 4, 2)
    assert list(test["unreadable"]) == ["Punch/v_Punch_g01_c01.avi"]


def test_command_without_lists(tmp_path, clip, run_here):
    root = ucf_download(tmp_path / "root", clip)
    done = run_here(train_command, "prepare", "--dataset", "ucf101", "--root", root)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[3].split() == ["test", "2/21", "4/2745", "2741", "0"]
    assert lines[4] == "numbers only: with --split-files every video is looked for by name"
    assert "missing: test Punch: 158 of 160" in lines
    assert "missing: test Diving: all of 150" in lines


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda root, clip: None, "no such folder"),
        (lambda root, clip: root.write_bytes(b"PK"), "is a file; unpack it first"),
        (lambda root, clip: root.mkdir(), "holds no clips ("),
        (lambda root, clip: put(clip, root / "wave.rar"), "holds no clips, only archives to unpack (1) ("),
        (
            lambda root, clip: put(clip, root / "x" / "a.avi"),
            "holds no class folder of hmdb51 with clips (--split-files",
        ),
    ],
)
def test_bad_roots(tmp_path, clip, make, expected):
    root = tmp_path / "root"
    make(root, clip)
    with pytest.raises(InputError) as caught:
        check_download(root, "hmdb51")
    assert str(caught.value).startswith(f"{root}: {expected}")


def test_exit_code_of_a_bad_root_and_of_bad_lists(tmp_path, clip, lists, run_here):
    arguments = ("prepare", "--dataset", "ucf101", "--root")
    done = run_here(train_command, *arguments, tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path / 'nowhere'}: no such folder (expected ROOT/class/video.avi")
    root = ucf_download(tmp_path / "root", clip)
    (tmp_path / "empty").mkdir()
    done = run_here(train_command, *arguments, root, "--split-files", tmp_path / "empty")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'empty'}: no list of ucf101 (")
    write_list(lists / "testlist03.txt", ["Punch/a", "Snooker/b"])
    done = run_here(train_command, *arguments, root, "--split-files", lists)
    assert done.returncode == 2
    assert f"{lists / 'testlist03.txt'}, line 2: 'Snooker' is no class of ucf101" in done.stderr


def test_eval_on_a_benchmark(tmp_path, lists, tiny_bundle, run_here):
    for colour, (name, found) in zip(("red", "blue"), UCF["test"].items(), strict=True):
        for seed, video in enumerate(found):
            write_clip(tmp_path / "root" / name / f"{video}.avi", colour, seed)
    arguments = ("--bundle", tiny_bundle, "--dataset", "ucf101", "--way", "2", "--episodes", "20", "--json")
    for options in (("--split-files", lists), ("--split", "test")):
        done = run_here(evaluate_command, *arguments, "--data", tmp_path / "root", *options)
        assert done.returncode == 0, done.stderr
        record = json.loads(done.stdout)
        assert record["accuracy"] == 100.0
        assert set(record["per_class"]) == set(UCF["test"])
    done = run_here(evaluate_command, *arguments, "--data", tmp_path / "root", "--split", "train")
    assert (done.returncode, done.stdout) == (2, "")
    assert "holds no clip of ucf101, train" in done.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--dataset", "ucf101"), "--dataset needs --data"),
        (("--data", "x", "--split", "validation"), "--split needs --dataset, or the --checkpoint of a training run"),
        (("--data", "x", "--split-files", "y"), "--split-files needs --dataset"),
        (("--data", "x", "--dataset", "ucf"), "'ucf' is not one of 'hmdb51', 'ucf101'"),
    ],
)
def test_eval_options_that_need_each_other(run_here, options, expected):
    done = run_here(evaluate_command, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr


@pytest.mark.parametrize("name", ["hmdb51", "ucf101"])
def test_published_lists_on_a_download_of_their_size(shared_dir, tmp_path, name):
    """Every video of the list of one repository is found by the list of the other; contents play no part."""
    for split in SPLITS:
        lines = (shared_dir / "splits" / "clip-fsar" / name / f"{split}_few_shot.txt").read_text().split()
        for line in lines[::10]:
            path = tmp_path / line.split("//")[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    report = check_download(tmp_path, name, shared_dir / "splits" / "clip-mdmf")
    total = sum(item.videos for item in benchmark(name).all_classes)
    assert sum(part.expected for part in report.splits) == total
    assert report.extra == {}
    assert sum(part.found for part in report.splits) == report.unreadable
    assert report.lacking == total - report.unreadable
    assert abs(report.unreadable - total / 10) < 3
