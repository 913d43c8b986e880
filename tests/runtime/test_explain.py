"""Why an answer is what it is: the alignment, the parts of a distance, the page and its safety."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_videos import write_video
from test_stream import scene
from tiny_bundle import write_bundle, write_clip, write_support

import m2df_runtime as m2df
from m2df_runtime.bundle.manifest import Manifest
from m2df_runtime.bundle.shipped import demo_bundle
from m2df_runtime.show.filmstrip import display_spec
from m2df_runtime.show.page import MAX_BYTES
from m2df_runtime.show.parts import Matching
from m2df_runtime.show.soft_path import soft_path


def paths(rows: int, columns: int) -> Iterator[tuple[list[tuple[int, int]], int]]:
    """Every way through OTAM's table as its real cells, by method section 2.7: columns 0 and columns + 1 cost nothing.

    A way through the right padding that visits other padding cells is another way.
    """

    def onward(cell: tuple[int, int], cells: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        row, column = cell
        if 1 <= column <= columns:
            cells = [*cells, (row, column - 1)]
        if cell == (rows - 1, columns + 1):
            yield cells
            return
        if column <= columns:
            yield from onward((row, column + 1), cells)  # right
        if row + 1 < rows:
            if column in (1, columns + 1):
                yield from onward((row + 1, column), cells)  # down, at the edges alone
            if column <= columns:
                yield from onward((row + 1, column + 1), cells)  # diagonally

    # C[l, 0] = 0 for every l: a path begins anywhere in the left padding, where nothing leads from one cell to another.
    for start in range(rows):
        yield from onward((start, 0), [])


@pytest.mark.parametrize(
    "rows, columns, lam", [(1, 1, 0.5), (1, 4, 0.5), (4, 1, 0.3), (3, 3, 0.5), (4, 3, 0.1), (3, 4, 2.0)]
)
def test_the_soft_path_is_the_mean_over_all_ways_through_the_table(rows: int, columns: int, lam: float) -> None:
    costs = np.random.default_rng(rows * 10 + columns).uniform(0, 2, (rows, columns))
    every = list(paths(rows, columns))
    sums = np.array([sum(costs[cell] for cell in path) for path in every])
    shares = np.exp(-(sums - sums.min()) / lam)
    shares /= shares.sum()
    visits = np.zeros_like(costs)
    for path, share in zip(every, shares, strict=True):
        for cell in path:
            visits[cell] += share
    found = soft_path(costs, lam)
    assert found.visits == pytest.approx(visits, abs=1e-12)
    assert found.cost == pytest.approx(shares @ sums)
    assert found.entropy == pytest.approx(-shares @ np.log(shares), abs=1e-12)
    assert found.value == pytest.approx(found.cost - lam * found.entropy)
    assert sum(costs[cell] for cell in found.hard) == pytest.approx(sums.min())
    assert list(found.hard) in every


def test_the_soft_path_is_the_gradient_and_its_value_that_of_the_reference() -> None:
    assert soft_path(np.zeros((8, 8)), 0.5).value == pytest.approx(-4.217774, abs=1e-6)
    assert soft_path(np.full((8, 8), 2.0), 0.1).value == pytest.approx(15.250836, abs=1e-6)
    costs, step = np.random.default_rng(3).uniform(0, 2, (8, 8)), 1e-5
    slopes = np.zeros_like(costs)
    for cell in itertools.product(range(8), range(8)):
        moved = np.zeros_like(costs)
        moved[cell] = step
        slopes[cell] = (soft_path(costs + moved, 0.5).value - soft_path(costs - moved, 0.5).value) / (2 * step)
    assert soft_path(costs, 0.5).visits == pytest.approx(slopes, abs=1e-8)


@pytest.fixture(scope="module")
def shipped() -> m2df.Model:
    return m2df.load(demo_bundle(), backend="cpu", threads=1)


def test_the_parts_are_the_distances_of_the_shipped_graphs(shipped: m2df.Model) -> None:
    manifest = shipped.bundle.manifest
    frames, dim = manifest.clip.frames, manifest.dim
    rng = np.random.default_rng(5)
    features = (rng.normal(size=(4, 1, dim)) + 0.7 * rng.normal(size=(4, frames, dim))).astype(np.float32)
    prompts = rng.normal(size=(3, dim)).astype(np.float32)
    for precision in manifest.precisions:
        model = m2df.load(demo_bundle(), backend="cpu", precision=precision, threads=1)
        prototypes = np.stack([model.prototypes(features[c : c + 1], prompts[c : c + 1]) for c in range(3)])
        found = model.match(features[3:], prompts, prototypes)
        matching = Matching.of(manifest)
        logits = []
        for c in range(3):
            views = matching.parts(found.tokens[0], prototypes[c])
            sums = [view.terms.total for view in views]
            assert sums == pytest.approx(found.distances[0, :, c].tolist(), rel=1e-4, abs=1e-4)
            logits.append(sum(f * own for f, own in zip(matching.view_factors, sums, strict=True)))
        assert np.diff(logits) == pytest.approx(np.diff(found.logits[0]), rel=1e-4, abs=1e-3)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"otam": {"bidirectional": True}}, "head.options.otam.lambda: field required"),
        ({"view_weights": [1.0]}, "head.options.view_weights: 1 for 2 views"),
        ({"cos_eps": None}, "head.options.cos_eps"),
        ({"otam": {"lambda": 0, "bidirectional": True}}, "head.options.otam.lambda"),
    ],
)
def test_a_manifest_that_lacks_what_matching_needs_is_named(shipped: m2df.Model, change: dict, said: str) -> None:
    data = shipped.bundle.manifest.model_dump()
    data["head"]["options"] |= change
    with pytest.raises(m2df.InputError, match=re.escape(said)):
        Matching.of(Manifest.model_validate(data))


class Checked(HTMLParser):
    """Reads a page, and holds it to what a page that explains may be."""

    VOID = frozenset({"meta", "br", "rect", "path", "circle", "line", "image", "polyline", "use"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, list[dict[str, str | None]]] = {}
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []
        assert len(page.encode()) <= MAX_BYTES
        assert self.seen.keys().isdisjoint({"script", "a", "link", "iframe", "form", "img", "object"})
        for attributes in itertools.chain.from_iterable(self.seen.values()):
            assert not [name for name in attributes if name.startswith("on")]
            target = attributes.get("href") or "#"
            assert target.startswith(("#", "data:image/jpeg;base64,"))
        named = [one["id"] for one in itertools.chain.from_iterable(self.seen.values()) if "id" in one]
        assert len(named) == len(set(named))
        assert {one["href"][1:] for one in self.seen.get("use", [])} == set(named)
        assert all(one.get("aria-label") or one.get("aria-hidden") for one in self.seen["svg"] if one.get("role"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.setdefault(tag, []).append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.setdefault(tag, []).append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


EVIL = "\"><img src=x onerror=alert(1)>&'{{7*7}}"


@pytest.fixture
def evil_support(tmp_path: Path) -> Path:
    folder = write_support(tmp_path / "actions", ("green",), shots=2)
    for shot in range(2):
        write_clip(folder / EVIL / f"{shot} <b>.mp4", "red", seed=shot)
    return folder


def test_a_page_shows_why_and_escapes_every_name(shipped: m2df.Model, evil_support: Path, tmp_path: Path) -> None:
    matcher = m2df.Matcher(shipped, m2df.SupportBank.of(shipped, evil_support), reject="off")
    query = write_clip(tmp_path / "<script>alert(1)<\x07script>.mp4", "red", seed=0)
    look = display_spec(shipped.bundle.manifest.clip)
    answer = matcher.predict(query, look=look)
    page = m2df.explain(answer, matcher)
    read = Checked(page)
    assert answer.label == EVIL
    assert "<script" not in page and "<b>.mp4" not in page and "<img" not in page
    for said in (
        EVIL,
        "<script>alert(1)<\\x07script>.mp4",
        f"{answer.probability:.1%}",
        "Second is green",
        "0 <b>.mp4",
    ):
        assert said in read.text, said
    assert "the most like it of the 2 clips" in read.text
    second = answer.classes[1].probability
    lead = float(re.search(r"together\s*\+([0-9.]+)", read.text)[1])
    divided = float(re.search(r"divided by ([0-9.e+]+)\.", read.text)[1])
    assert lead / divided == pytest.approx(math.log(answer.probability / second), abs=0.02)
    assert len(read.seen["image"]) == 3  # query, the best class, the second
    assert len(read.seen["polyline"]) == 8  # two directions, views and classes
    assert [one["http-equiv"] for one in read.seen["meta"] if "http-equiv" in one] == ["Content-Security-Policy"]
    plain = Checked(m2df.explain(matcher.predict(query), matcher))
    assert len(plain.seen["image"]) == 2 and "The frames of the query were not kept." in plain.text


def test_a_rejected_answer_is_explained_as_one(shipped: m2df.Model, evil_support: Path, tmp_path: Path) -> None:
    bank = m2df.SupportBank.of(shipped, evil_support)
    query = write_clip(tmp_path / "blue.mp4", "blue", seed=5)
    sure = m2df.Matcher(shipped, bank, reject=1.0)
    read = Checked(m2df.explain(sure.predict(query), sure))
    assert "unknown (nearest: " in read.text and "answers are rejected below a probability of 1." in read.text
    assert bank.calibration is not None
    strict = m2df.Matcher(shipped, bank, miss_rate=0.9)
    assert strict.rejection is not None
    answer = strict.predict(query)
    number = f"{strict.rejection.threshold:.2f}".replace("-", "\N{MINUS SIGN}")
    read = Checked(m2df.explain(answer, strict))
    assert answer.rejected
    assert f"up to {number} it would have been taken for one" in read.text
    assert "What decides" not in read.text
    assert len([one for one in read.seen["line"] if one["class"] == "mark"]) == 2


def test_a_bank_explains_with_what_it_holds(shipped: m2df.Model, evil_support: Path, tmp_path: Path) -> None:
    bank = m2df.SupportBank.of(shipped, evil_support)
    query = write_clip(tmp_path / "red.mp4", "red", seed=7)
    images = []
    for keep in ("strips", "nothing"):
        bank.write(tmp_path / f"{keep}.bank", keep=keep)
        carried = m2df.SupportBank.of(shipped, tmp_path / f"{keep}.bank")
        matcher = m2df.Matcher(shipped, carried)
        read = Checked(m2df.explain(matcher.predict(query), matcher))
        images.append(len(read.seen.get("image", [])))
    assert images == [2, 0]
    assert "Its frames cannot be shown: the bank holds nothing of it to look at" in read.text


def test_a_model_whose_distances_cannot_be_taken_apart_says_why(
    tiny_bundle: Path, support_dir: Path, query_dir: Path, tmp_path: Path
) -> None:
    def explained(bundle: Path) -> Checked:
        model = m2df.load(bundle, threads=1)
        matcher = m2df.Matcher(model, m2df.SupportBank.of(model, support_dir))
        look = display_spec(model.bundle.manifest.clip)
        return Checked(m2df.explain(matcher.predict(query_dir / "red.mp4", look=look), matcher))

    read = explained(tiny_bundle)
    assert "cannot be taken apart: the manifest's head is 'tiny'" in read.text
    assert len(read.seen["image"]) == 3 and "polyline" not in read.seen
    other = write_bundle(tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    options = {"otam": {"lambda": 0.5, "bidirectional": True}, "cos_eps": 0.01, "otam_weight": 1, "mean_weight": 0}
    manifest["head"] = {"name": "m2df", "options": options | {"view_weights": [1, 1]}}
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert "its manifest give other distances than its graph" in explained(other).text


def test_an_answer_from_another_bank_is_refused(tiny_bundle: Path, support_dir: Path, query_dir: Path) -> None:
    model = m2df.load(tiny_bundle, threads=1)
    bank = m2df.SupportBank.of(model, support_dir)
    matcher = m2df.Matcher(model, bank)
    answer = matcher.predict(query_dir / "red.mp4")
    matcher.swap(bank.remove("blue"))
    with pytest.raises(m2df.InputError, match="another bank than the matcher has now"):
        m2df.explain(answer, matcher)
    assert math.isfinite(answer.distance)


def test_the_command_writes_a_page_for_each_query(run, query_dir: Path, tmp_path: Path) -> None:
    done = run("--query", query_dir, "--reject", "off", "--explain", tmp_path / "why.html")
    assert done.returncode == 0
    for number, label in enumerate(("blue", "green", "red"), 1):
        page = (tmp_path / f"why-{number}.html").read_text(encoding="utf-8")
        assert f"<title>{label}: {label}.mp4</title>" in page
        assert f"Of 3 actions, {label} fits best" in Checked(page).text


def test_a_recording_is_explained_by_the_windows_that_decided(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = write_video(tmp_path / "<i>.mp4", scene((None, 2), ("red", 2), (None, 2), ("blue", 2)))
    watched = ("--query", recording, "--window", 1, "--stride", 0.5, "--explain", tmp_path / "why.html")
    done = run(*watched, "--json")
    events = [event for event in map(json.loads, done.stdout.splitlines()) if event["type"] == "end"]
    read = Checked((tmp_path / "why.html").read_text(encoding="utf-8"))
    assert "<i>.mp42 events in 0:08.0" in read.text
    for event in events:
        assert f"decided: of its {event['windows']} windows the one with the highest score" in read.text
        assert f"{event['top_score']:.0%}. Of 3 actions, {event['label']} fits best" in read.text
    assert len(read.seen["image"]) == 2 * len(events) == 4
    drawn = [one for one in read.seen["rect"] if one["class"] == "accent" and one["height"] == "5"]
    for event, bar in zip(events, sorted(drawn, key=lambda one: float(one["x"][:-1])), strict=True):
        assert float(bar["x"][:-1]) == pytest.approx(100 * event["start"] / 8, abs=0.1)
    monkeypatch.setattr("m2df_runtime.show.explain_recording.MAX_BYTES", 1)
    run(*watched)
    short = Checked((tmp_path / "why.html").read_text(encoding="utf-8"))
    assert "2 events with lower scores are only listed" in short.text and "image" not in short.seen
