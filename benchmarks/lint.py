"""How often `bank lint` finds what is wrong, and how often it names what is not, over many generated banks.

    python -m benchmarks.lint --split val

Every bank is made of clips that were encoded once, first clean, then with one mistake of each kind. The limits in
`m2df_runtime/bank/lint.py` are chosen with `--split val`; test actions, the default, say what they are worth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import av
import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.record import Machine, write
from benchmarks.ruled import described, ruled
from m2df_runtime.backends.model import Model
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bank.contents import BankClip, Members, keys_of, make_classes
from m2df_runtime.bank.folder import Stamp
from m2df_runtime.bank.lint import Finding, lint
from m2df_runtime.clips.opening import open_source
from m2df_runtime.clips.source import ArraySource, FrameSource
from m2df_runtime.commands.console import main_entry, progress
from m2df_train.data.clips import generated_clips
from m2df_train.evaluation.features import encode

Float = NDArray[np.float32]
KINDS = ("mislabelled", "alike", "twice", "still", "background")
SIZES = ((2, 2), (3, 3), (5, 3), (5, 5), (8, 5))  # classes and clips of each
LOW_RATE = 200_000  # bits per second of a clip that is encoded anew


class Clips(NamedTuple):
    """Encoded clips by action [n, T, D] each, and of some of them what was made anew or brought to a stop.

    Attributes:
        plain: As they are.
        anew: The first ones, through another codec at a low rate.
        still: The first ones, as if nothing moved: their first frame throughout.
    """

    plain: dict[str, Float]
    anew: dict[str, Float]
    still: dict[str, Float]


def encoded(model: Model, split: Literal["val", "test"], per_class: int, changed: int, work: Path) -> Clips:
    """Encode `per_class` generated clips of each action, and `changed` of these again after a change."""
    clips = generated_clips(per_class, split=split)
    some = [clip for place, clip in enumerate(clips) if place % per_class < changed]
    sets = (
        clips,
        [replace(clip, open=partial(_anew, clip.open, work / f"{place}.avi")) for place, clip in enumerate(some)],
        [replace(clip, open=partial(_stopped, clip.open)) for clip in some],
    )
    found = []
    with progress("encoding", sum(map(len, sets))) as advance:
        for each in sets:
            features = encode(model, each, model.bundle.manifest.clip, advance=advance)
            labels = np.asarray(features.labels)
            found.append({label: features.values[labels == label] for label in dict.fromkeys(features.labels)})
    return Clips(*found)


def _anew(original: Callable[[], FrameSource], path: Path) -> FrameSource:
    source = original()
    frames = source.read(np.arange(source.n_frames))
    height, width = (side - side % 2 for side in frames.shape[1:3])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=round(source.fps))
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", LOW_RATE
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return open_source(path)


def _stopped(original: Callable[[], FrameSource]) -> FrameSource:
    source = original()
    return ArraySource(np.repeat(source.read(np.zeros(1, np.int64)), source.n_frames, axis=0), source.fps)


class Banks:
    """Draws banks of `classes` actions with `shots` clips each."""

    def __init__(self, model: Model, clips: Clips, classes: int, shots: int, seed: int) -> None:
        self._model, self._clips = model, clips
        self._classes, self._shots = classes, shots
        self._rng = np.random.default_rng([seed, classes, shots])

    def clean(self) -> SupportBank:
        """A bank without a mistake, and as many clips of another action as background."""
        drawn = self._drawn()
        other = str(self._rng.choice(sorted(self._clips.plain.keys() - drawn.keys())))
        return self._bank(drawn, list(self._rng.permutation(self._clips.plain[other])[: self._shots]))

    def mistaken(self, kind: str) -> tuple[SupportBank, set[str]]:
        """A bank with one mistake, and the clips or classes that a finding of it may name; each is one to find."""
        drawn = self._drawn()
        first, second = list(drawn)[:2]
        if kind == "mislabelled":
            drawn[first][0], drawn[second][0] = drawn[second][0], drawn[first][0]
            return self._bank(drawn), {f"{first}/0", f"{second}/0"}
        if kind == "alike":
            both = self._rng.permutation(len(self._clips.plain[first]))[: 2 * self._shots]
            own = self._clips.plain[first][both]
            drawn[first], drawn[second] = list(own[: self._shots]), list(own[self._shots :])
            return self._bank(drawn), {f"{first} {second}"}
        chosen = int(self._rng.integers(len(self._clips.anew[first])))
        if kind == "twice":
            drawn[first][0], drawn[second][-1] = self._clips.plain[first][chosen], self._clips.anew[first][chosen]
            return self._bank(drawn), {f"{first}/0 {second}/{self._shots - 1}"}
        if kind == "still":
            drawn[first] = [
                self._clips.still[first][(chosen + n) % len(self._clips.still[first])] for n in range(self._shots)
            ]
            return self._bank(drawn), {first}
        spare = self._rng.permutation(len(self._clips.plain[first]))[self._shots :][:1]
        return self._bank(drawn, list(self._clips.plain[first][spare])), {"_background/0"}

    def _drawn(self) -> dict[str, list[Float]]:
        names = self._rng.permutation(sorted(self._clips.plain))[: self._classes]
        return {
            str(name): list(self._rng.permutation(self._clips.plain[str(name)])[: self._shots])
            for name in sorted(names)
        }

    def _bank(self, drawn: dict[str, list[Float]], background: Sequence[Float] = ()) -> SupportBank:
        rules = self._model.bundle.manifest.text.rules
        members = [
            Members(label, rules.descriptions(label), rules.prompts(label), _bank_clips(label, clips))
            for label, clips in drawn.items()
        ]
        return SupportBank(
            make_classes(members, self._model, None),
            keys_of(self._model.bundle),
            background=_bank_clips("_background", background),
            model=self._model,
            rules=rules,
        )


def _bank_clips(label: str, clips: Sequence[Float]) -> tuple[BankClip, ...]:
    return tuple(BankClip(f"{label}/{n}", f"{label}/{n}", Stamp(0, 0, 0, 0), clip, 1.0) for n, clip in enumerate(clips))


def measure(model: Model, clips: Clips, classes: int, shots: int, draws: int, seed: int) -> dict[str, object]:
    """Findings per clean bank by kind, and shares of mistakes that were found."""
    banks = Banks(model, clips, classes, shots, seed)
    with progress(f"{classes} classes of {shots}", draws * (1 + len(KINDS))) as advance:
        clean = []
        for _ in range(draws):
            clean.append(lint(banks.clean()))
            advance(1)
        shares = {}
        for kind in KINDS:
            told = []
            for _ in range(draws):
                bank, about = banks.mistaken(kind)
                told.append(len(about & set(_named(lint(bank), kind))) / len(about))
                advance(1)
            shares[kind] = float(np.mean(told))
    wrong = {kind: float(np.mean([sum(1 for _ in _named(found, kind)) for found in clean])) for kind in KINDS}
    return {
        "wrongly_named_per_clean_bank": {kind: round(value, 3) for kind, value in wrong.items()},
        "clean_banks_with_a_finding": round(float(np.mean([bool(found) for found in clean])), 3),
        "found": {kind: round(value, 3) for kind, value in shares.items()},
    }


def _named(findings: Sequence[Finding], kind: str) -> Iterator[str]:
    return (" ".join(sorted(finding.about)) for finding in findings if finding.kind == kind)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--bundle", "bundle_path", type=click.Path(path_type=Path), help="Bundle [newest, else the shipped one].")
@click.option("--split", type=click.Choice(["val", "test"]), default="test", help="Which generated actions.")
@click.option("--draws", type=click.IntRange(1), default=200, help="Banks of each size and kind.")
@click.option("--per-class", type=click.IntRange(10), default=20, help="Clips of each action.")
@click.option("--changed", type=click.IntRange(1), default=4, help="Of these encoded anew, and brought to a stop.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file [benchmarks/results/lint.json].")
def cli(
    bundle_path: Path | None,
    split: Literal["val", "test"],
    draws: int,
    per_class: int,
    changed: int,
    seed: int,
    out: Path | None,
) -> None:
    """Count what `bank lint` finds, and what it names wrongly."""
    machine = Machine()
    model = ruled(bundle_path)
    with tempfile.TemporaryDirectory(prefix="m2df-") as work:
        clips = encoded(model, split, per_class, changed, Path(work))
    results = {}
    for classes, shots in SIZES:
        results[f"{classes} classes of {shots}"] = found = measure(model, clips, classes, shots, draws, seed)
        click.echo(f"{classes} classes of {shots}: {found}")
    record = {
        "results": results,
        "settings": {
            "split": split, "draws": draws, "clips": sum(map(len, clips.plain.values())), "actions": len(clips.plain),
            "seed": seed,
        },
        "bundle": described(model),
        "environment": machine.environment(),
    }  # fmt: skip
    click.echo(f"written: {write('lint', record, out)}")


if __name__ == "__main__":
    main_entry(cli)
