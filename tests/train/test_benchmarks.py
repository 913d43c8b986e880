"""The classes of the five benchmarks: numbers, texts in both spellings, and names folders may have."""

from __future__ import annotations

import pytest

from m2df_runtime.bundle.prompt_texts import text_from_folder
from m2df_runtime.errors import InputError
from m2df_train.data.split_files import find_split_file
from m2df_train.public_benchmarks import BENCHMARKS, SPLITS, benchmark

# Method section 6.1: classes and videos in train, val, test.
SIZES = {
    "hmdb51": ((31, 10, 10), (4280, 1194, 1292)),
    "ucf101": ((70, 10, 21), (9154, 1421, 2745)),
    "kinetics100": ((64, 12, 24), (6400, 1200, 2400)),
    "ssv2-full": ((64, 12, 24), (67013, 1926, 2857)),
    "ssv2-small": ((64, 12, 24), (6400, 1200, 2400)),
}
# Method section 1.3.
EXCEPTIONS = {
    "hmdb51": {
        "draw_sword": ("draw sword", "draw_sword"),
        "ride_bike": ("ride bike", "ride_bike"),
        "shake_hands": ("shake hands", "shake_hands"),
        "shoot_bow": ("shoot bow", "shoot_bow"),
    },
    "ucf101": {
        "BlowDryHair": ("Blow Dry Hair", "Blow DryHair"),
        "WalkingWithDog": ("Walking With Dog", "Walking WithDog"),
    },
}
# Method section 6.2: numbers of SSv2-Full's labels, in the order of the class ids.
SSV2_FULL_NUMBERS = {
    "train": "3 5 6 8 9 10 14 16 19 22 23 25 29 32 34 37 38 43 45 49 52 56 57 59 60 61 65 66 68 73 78 82 88 91 92 93 "
    "95 99 100 102 103 111 112 114 124 125 132 137 138 140 141 143 145 147 149 156 157 159 165 166 168 169 170 171",
    "val": "20 28 31 50 63 70 97 105 123 128 146 153",
    "test": "0 7 11 12 13 30 47 54 62 67 71 72 76 79 86 89 94 121 126 129 136 148 154 158",
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_numbers_of_classes_and_videos(name):
    parts = [benchmark(name).classes(split) for split in SPLITS]
    assert tuple(map(len, parts)) == SIZES[name][0]
    assert tuple(sum(item.videos for item in part) for part in parts) == SIZES[name][1]
    for part, split in zip(parts, SPLITS, strict=True):
        assert [item.id for item in part] == list(range(len(part)))
        assert {item.split for item in part} == {split}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_class_is_in_two_splits_and_every_folder_leads_to_its_class(name):
    known = benchmark(name)
    assert len({item.folder for item in known.all_classes}) == len(known.all_classes)
    for item in known.all_classes:
        assert all(known.find(folder) == item for folder in item.folders)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_spellings_differ_in_the_six_exceptions_alone(name):
    paper, official = benchmark(name).texts("paper"), benchmark(name).texts("official")
    differ = {folder: (paper[folder], official[folder]) for folder in paper if paper[folder] != official[folder]}
    assert differ == EXCEPTIONS.get(name, {})
    assert benchmark(name).texts() == paper


@pytest.mark.parametrize("name", BENCHMARKS)
def test_texts_are_clean(name):
    for text in benchmark(name).texts().values():
        assert "_" not in text
        assert text == " ".join(text.split())


@pytest.mark.parametrize("name", ["hmdb51", "ucf101", "kinetics100"])
def test_paper_texts_agree_with_the_runtimes_rule_but_for_case(name):
    for folder, text in benchmark(name).texts().items():
        assert text.lower() == text_from_folder(folder).lower()


@pytest.mark.parametrize(
    ("name", "folder", "text"),
    [
        ("kinetics100", "hurling_(sport)", "hurling (sport)"),
        ("ucf101", "YoYo", "Yo Yo"),
        ("ucf101", "HandstandPushups", "Handstand Pushups"),
        ("hmdb51", "flic_flac", "flic flac"),
        ("ssv2-full", "Pulling something from left to right", "Pulling [something] from left to right"),
        ("ssv2-small", "Poking a hole into something soft", "Poking a hole into [something soft]"),
        ("ssv2-small", "Stacking number of something", "Stacking [number of] [something]"),
    ],
)
def test_texts(name, folder, text):
    item = benchmark(name).find(folder)
    assert (item.folder, item.text(), item.text("official")) == (folder, text, text)


@pytest.mark.parametrize("name", ["ssv2-full", "ssv2-small"])
def test_templates_have_brackets_and_folders_none(name):
    for item in benchmark(name).all_classes:
        assert "[" in item.text()
        assert item.folder == item.text().replace("[", "").replace("]", "")


@pytest.mark.parametrize("split", SPLITS)
def test_ssv2_full_is_in_the_order_of_the_label_numbers(split):
    numbers = [item.number for item in benchmark("ssv2-full").classes(split)]
    assert numbers == list(map(int, SSV2_FULL_NUMBERS[split].split()))


def test_ssv2_numbers_are_those_of_the_sorted_templates():
    # SSv2 numbers its labels in the order of their names; both benchmarks draw from the same 174.
    items = {item.number: item for name in ("ssv2-full", "ssv2-small") for item in benchmark(name).all_classes}
    ordered = [items[number].folder for number in sorted(items)]
    assert ordered == sorted(ordered)
    assert len({item.text() for item in items.values()}) == len(items)


@pytest.mark.parametrize(
    ("name", "spelling", "folder"),
    [
        ("hmdb51", "brush hair", "brush_hair"),
        ("hmdb51", "Brush-Hair", "brush_hair"),
        ("ucf101", "Handstand_Pushups", "HandstandPushups"),
        ("ucf101", "HandStandPushups", "HandstandPushups"),
        ("kinetics100", "playing ice_hockey", "playing_ice_hockey"),
        ("ssv2-full", "126", "Showing something next to something"),
        ("ssv2-full", "Showing [something] next to [something]", "Showing something next to something"),
        ("ssv2-small", "Opening_something", "Opening something"),
    ],
)
def test_a_class_is_found_by_any_spelling_of_its_folder(name, spelling, folder):
    assert benchmark(name).find(spelling).folder == folder


@pytest.mark.parametrize("folder", ["", "videos", "train", "1", "sward", "brush hair twice"])
def test_other_folders_are_no_class(folder):
    assert benchmark("hmdb51").find(folder) is None


def test_an_unknown_benchmark_names_the_known_ones():
    with pytest.raises(InputError, match=r"'ucf-101': no such benchmark .*hmdb51, ucf101, kinetics100"):
        benchmark("ucf-101")


@pytest.mark.parametrize("name", ["hmdb51", "ucf101", "kinetics100"])
def test_class_ids_are_those_of_clip_fsars_lists(shared_dir, name):
    for split in SPLITS:
        lines = find_split_file(shared_dir / "splits" / "clip-fsar", name, split).read_text().split()
        pairs = {(line.split("//")[0], line.split("/")[-2]) for line in lines}
        assert pairs == {(f"{split}{item.id}", item.folder) for item in benchmark(name).classes(split)}


def test_ssv2_small_ids_and_names_agree_over_the_lists_of_both_repositories(shared_dir):
    folder = shared_dir / "splits"
    for split in SPLITS:
        named = find_split_file(folder / "clip-mdmf", "ssv2-small", split).read_text().splitlines()
        name_of = {video: name for name, _, video in (line.rpartition("/") for line in named)}
        numbered = find_split_file(folder / "clip-fsar", "ssv2-small", split).read_text().split()
        pairs = {(line.split("/")[0], name_of[line.split("/")[1]]) for line in numbered}
        assert pairs == {(f"{split}{item.id}", item.folder) for item in benchmark("ssv2-small").classes(split)}


def test_videos_of_both_ssv2_benchmarks_have_the_same_label(shared_dir):
    # 3,192 videos are in both; they tie the numbers of the one list to the names of the other.
    numbers: dict[str, int] = {}
    names: dict[str, str] = {}
    for split in SPLITS:
        for line in find_split_file(shared_dir / "splits/clip-mdmf/ssv2_OTAM", "ssv2-full", split).read_text().split():
            if not line.startswith(split):
                numbers[line.split("/")[1]] = int(line.split("/")[0])
        text = find_split_file(shared_dir / "splits/clip-mdmf/ssv2_CMN", "ssv2-small", split).read_text()
        names |= {video: name for name, _, video in (line.rpartition("/") for line in text.splitlines())}
    shared = names.keys() & numbers.keys()
    assert len(shared) > 3000
    assert all(benchmark("ssv2-small").find(names[video]).number == numbers[video] for video in shared)
