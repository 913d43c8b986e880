"""Where a run's clips come from: generated actions, a folder of one's own, or a benchmark, in three splits."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from m2df_runtime.bundle.prompt_texts import LabelRules, class_key, read_labels, warn_unmatched
from m2df_runtime.clips.folder_entries import entries
from m2df_runtime.clips.listing import list_clips
from m2df_runtime.errors import InputError
from m2df_runtime.files import atomic_write
from m2df_train.data.benchmark_clips import split_clips
from m2df_train.data.clips import LabelledClip, folder_clips, generated_clips
from m2df_train.data.folder import DatasetFolder
from m2df_train.public_benchmarks import SPLITS, Split, benchmark

if TYPE_CHECKING:
    from m2df_train.recipe.recipe import Recipe

_log = logging.getLogger(__name__)

_SPELLINGS = ("paper", "official")
_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
_NAMES: dict[Split, str] = {"train": "training", "val": "validation", "test": "test"}
DIVISION = "splits.json"
_LEAST_CLASSES = 2
_MOST_NAMED = 10


_Found = tuple[dict[Split, list[LabelledClip]], dict[str, str]]  # clips per split, texts that are known


@dataclass(frozen=True)
class ClipSet:
    """Clips of one split.

    Attributes:
        clips: Classes in blocks.
        texts: Class to text, in the order of the blocks.
    """

    clips: tuple[LabelledClip, ...]
    texts: dict[str, str]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class of every clip."""
        return tuple(clip.label for clip in self.clips)

    @property
    def classes(self) -> tuple[str, ...]:
        """All classes, in the order of the blocks."""
        return tuple(self.texts)


@dataclass(frozen=True)
class Splits:
    """The clips of a run; no class is in two of them. `test` is empty where no classes are kept for it."""

    train: ClipSet
    validation: ClipSet
    test: ClipSet


def load_splits(recipe: Recipe, run: Path | None = None) -> Splits:
    """Find the clips a recipe names.

    Without `data.root`: generated actions, whose splits are fixed. With `data.dataset`: that benchmark's. Otherwise
    `root` is a folder of class folders, or it holds such folders named train, val and test. Where there is no val,
    some classes of the others validate: `data.validation` of them, at least two, and of an undivided folder
    `data.test` of them test, at least two, or none where it is 0; then the run ends without a report on unseen
    classes. Which they are depends on seed and names only, and those with clips enough to be measured come first.

    Classes with too few clips for an episode are named in a warning; the sampler leaves them out.

    Args:
        recipe: The recipe.
        run: Folder of a run whose division, where it wrote one with `keep_division`, is followed: a folder may
            have grown since, and what a run trained on must stay training.

    Raises:
        InputError: Nothing is there, a class is in two splits, or a split has fewer than two classes with clips
            enough for an episode; or a class of the run is gone.
    """
    data, evaluation = recipe.data, recipe.evaluation
    find = _generated if data.root is None else _folder if data.dataset is None else _benchmark
    found, texts = find(recipe, _kept_division(run))
    if data.labels not in _SPELLINGS:
        labels = read_labels(Path(data.labels))
        warn_unmatched(Path(data.labels), labels, (clip.label for clips in found.values() for clip in clips))
        texts = {**texts, **{name: descriptions[0] for name, descriptions in labels.items()}}
    rules = LabelRules(texts=texts)
    sets: dict[Split, ClipSet] = {}
    for split, clips in found.items():
        most, stage = (data.clips, recipe.train) if split == "train" else (evaluation.clips, evaluation)
        kept = _at_most(clips, most, recipe.seed)
        if kept or split != "test":
            _check_enough(_NAMES[split], kept, max(stage.shots), stage.queries)
        sets[split] = ClipSet(tuple(kept), {name: rules.descriptions(name)[0] for name in _counts(kept)})
    return Splits(sets["train"], sets["val"], sets["test"])


def keep_division(splits: Splits, run: Path) -> None:
    """Write which class is in which split beside a run, unless that is there already."""
    file = run / DIVISION
    if not file.exists():
        sets: dict[Split, ClipSet] = {"train": splits.train, "val": splits.validation, "test": splits.test}
        owner = {name: split for split, clips in sets.items() for name in clips.classes}
        atomic_write(file, json.dumps(owner, indent=1, ensure_ascii=False).encode())


def _kept_division(run: Path | None) -> dict[str, Split] | None:
    file = None if run is None else run / DIVISION
    if file is None or not file.is_file():
        return None
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        kept = None
    if not isinstance(kept, dict) or not set(map(str, kept.values())) <= set(SPLITS):
        raise InputError(f"{file}: damaged; it says which classes the run trained on", "start the run anew")
    return kept


def _generated(recipe: Recipe, kept: Mapping[str, Split] | None) -> _Found:
    from m2df_train.data.generated import action_clips, pool_actions
    from m2df_train.synthetic import split_actions

    training, validation = pool_actions(recipe.data.composed, recipe.seed), split_actions("val")
    per_class, measured = recipe.data.clips or 0, recipe.evaluation.clips or 0  # the recipe has both
    texts = {action.name: action.text for action in (*training, *validation, *split_actions("test"))}
    return {
        "train": action_clips(training, per_class),
        "val": action_clips(validation, measured),
        "test": generated_clips(measured),
    }, texts


def _benchmark(recipe: Recipe, kept: Mapping[str, Split] | None) -> _Found:
    data = recipe.data
    assert data.root is not None and data.dataset is not None
    known = benchmark(data.dataset)
    folder = DatasetFolder.scan(Path(data.root), known)
    lists = None if data.split_files is None else Path(data.split_files)
    found = {split: _in_blocks(split_clips(folder, split, lists)) for split in SPLITS}
    return found, known.texts("official" if data.labels == "official" else "paper")


def _folder(recipe: Recipe, kept: Mapping[str, Split] | None) -> _Found:
    assert recipe.data.root is not None
    root = Path(recipe.data.root)
    places = _split_folders(root)
    if "train" not in places:
        return _divided(_listed(root), recipe, root, ("val", "test"), kept), {}
    found = {split: _listed(place) for split, place in places.items()}
    if "val" not in found:
        found |= _divided(found["train"], recipe, places["train"], ("val",), kept)
    found.setdefault("test", [])
    _check_disjoint(root, found)
    return {split: found[split] for split in SPLITS}, {}


def _split_folders(root: Path) -> dict[Split, Path]:
    """The folders of class folders that are named after splits; empty for an undivided folder.

    A class may be called `train` too: its folder then holds clips, not folders of clips. A stray clip beside
    folders of clips is none of the split's.
    """
    inside = {folder.name.lower(): folder for folder in _folders(root)}
    places: dict[Split, Path] = {}
    for split, names in _FOLDERS.items():
        place = next((inside[name] for name in names if name in inside), None)
        if place is not None and any(_holds_clips(folder) for folder in _folders(place)):
            places[split] = place
    return places


def _folders(root: Path) -> list[Path]:
    """The folders in a folder; none where it is missing or may not be listed, which the listing of clips reports."""
    try:
        return [entry.path for entry in entries(root) if entry.is_folder]
    except OSError:
        return []


def _holds_clips(folder: Path) -> bool:
    try:
        return bool(list_clips(folder).clips)
    except InputError:
        return False


def _listed(folder: Path) -> list[LabelledClip]:
    clips, warnings = folder_clips(folder)
    for warning in warnings:
        _log.warning("%s", warning)
    return clips


def _divided(
    clips: list[LabelledClip],
    recipe: Recipe,
    root: Path,
    splits: tuple[Split, ...],
    kept: Mapping[str, Split] | None,
) -> dict[Split, list[LabelledClip]]:
    """Whole classes for each of the splits, the rest for training; as `kept` says, where a run has divided them."""
    counts = _counts(clips)
    owner = _owners(counts, recipe, root, splits) if kept is None else _as_kept(counts, kept, root, ("train", *splits))
    return {split: [clip for clip in clips if owner.get(clip.label) == split] for split in ("train", *splits)}


def _as_kept(
    counts: Mapping[str, int], kept: Mapping[str, Split], root: Path, splits: tuple[Split, ...]
) -> dict[str, Split]:
    split_of = {class_key(name): split for name, split in kept.items()}
    there = {class_key(name) for name in counts}
    gone = [name for name, split in kept.items() if split in splits and class_key(name) not in there]
    if gone:
        raise InputError(f"{root}: classes of the run are not there: {', '.join(gone[:_MOST_NAMED])}", "put them back")
    new = [name for name in counts if class_key(name) not in split_of]
    if new:
        named = ", ".join(new[:_MOST_NAMED]) + (" ..." if len(new) > _MOST_NAMED else "")
        _log.warning("%s: classes that were not there when the run began are left out: %s", root, named)
    return {name: split_of[class_key(name)] for name in counts if class_key(name) in split_of}


def _owners(counts: Mapping[str, int], recipe: Recipe, root: Path, splits: tuple[Split, ...]) -> dict[str, Split]:
    """The split of every class. Shares are of the classes that can be measured, which validation and test need;
    those that cannot be trained on go there first."""
    evaluation, train = recipe.evaluation, recipe.train
    needed, trainable = max(evaluation.shots) + evaluation.queries, max(train.shots) + train.queries
    shares = {"val": recipe.data.validation, "test": recipe.data.test}
    if not shares["val"]:
        raise InputError(
            "data.validation is 0: weights are chosen on classes that training does not see",
            "give a share, of which at least two classes are taken",
        )
    usable = sum(count >= needed for count in counts.values()) or len(counts)
    sizes = {s: max(_LEAST_CLASSES, round(shares[s] * usable)) if shares[s] else 0 for s in splits}
    if len(counts) - sum(sizes.values()) < _LEAST_CLASSES:
        wanted = ", ".join(f"{_NAMES[split]} {size}" for split, size in sizes.items() if size)
        raise InputError(
            f"{root}: {len(counts)} classes; training needs {_LEAST_CLASSES} at least, {wanted}",
            "add classes or lower the shares data.validation and data.test; data.test=0 does without a test",
        )
    order = sorted(counts, key=lambda n: (counts[n] < needed, counts[n] >= trainable, _rank(recipe.seed, n)))
    held: dict[str, Split] = {}
    for split, size in sizes.items():
        held |= dict.fromkeys(order[len(held) : len(held) + size], split)
    return {name: held.get(name, "train") for name in counts}


def _check_disjoint(root: Path, found: Mapping[Split, Sequence[LabelledClip]]) -> None:
    seen: dict[str, Split] = {}
    for split, clips in found.items():
        for name in _counts(clips):
            first = seen.setdefault(class_key(name).casefold(), split)
            if first != split:
                raise InputError(
                    f"{root}: class {name!r} is in {first} and {split}; accuracy is that of classes which "
                    "training does not see",
                    f"give {root / first} alone, whose classes are then divided",
                )


def _check_enough(split: str, clips: Sequence[LabelledClip], shots: int, queries: int) -> None:
    """Warn of classes that no episode can use, and refuse a split that is left with fewer than two."""
    counts = _counts(clips)
    few = {name: count for name, count in counts.items() if count < shots + queries}
    named = ", ".join(f"{name} ({count})" for name, count in list(few.items())[:_MOST_NAMED])
    named += f" and {len(few) - _MOST_NAMED} more" if len(few) > _MOST_NAMED else ""
    needed = f"the {shots + queries} clips that {shots} support and {queries} query clips need"
    if len(counts) - len(few) < _LEAST_CLASSES:
        section = "train" if split == "training" else "evaluation"
        raise InputError(
            f"{split}: {len(counts) - len(few)} of {len(counts)} classes have {needed}; two must"
            + (f"; fewer have {named}" if few else ""),
            f"add clips or classes, or lower {section}.shots or {section}.queries",
        )
    if few:
        _log.warning("%s: classes without %s are not drawn: %s", split, needed, named)


def _at_most(clips: list[LabelledClip], most: int | None, seed: int) -> list[LabelledClip]:
    """At most so many clips of every class, chosen by seed and name, in their order."""
    if most is None:
        return clips
    left = dict.fromkeys(_counts(clips), most)
    chosen: set[int] = set()
    for number in sorted(range(len(clips)), key=lambda number: _rank(seed, clips[number].name)):
        if left[clips[number].label]:
            left[clips[number].label] -= 1
            chosen.add(number)
    return [clip for number, clip in enumerate(clips) if number in chosen]


def _in_blocks(clips: list[LabelledClip]) -> list[LabelledClip]:
    """The same clips, those of a class one after the other."""
    place = {name: number for number, name in enumerate(_counts(clips))}
    return sorted(clips, key=lambda clip: place[clip.label])


def _counts(clips: Iterable[LabelledClip]) -> Counter[str]:
    """Clips per class, in order of first appearance."""
    return Counter(clip.label for clip in clips)


def _rank(seed: int, name: str) -> str:
    """A random order of names in which another name changes nothing."""
    return hashlib.sha256(f"{seed}|{name}".encode("utf-8", "surrogateescape")).hexdigest()
