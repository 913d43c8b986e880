"""What a newcomer sees first: the shipped bundle on the shipped clips, through the real command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.shipped import RECORDED, demo_bundle, demo_queries, demo_recording, demo_support
from m2df_runtime.clips.opening import open_source
from m2df_train.recipe.recipe import load_recipe
from m2df_train.synthetic import ACTIONS, demo_clips
from m2df_train.synthetic.demo_clips import CLIPS


def test_the_demo_answers_the_shipped_clips_draws_the_match_and_reads_the_bank_next_time(
    tmp_path: Path, run_module
) -> None:
    def run(*options: str) -> list[dict[str, Any]]:
        kept = str(tmp_path / "cache")
        result = run_module("m2df_runtime.commands.run", "--json", *options, cwd=tmp_path, XDG_CACHE_HOME=kept)
        assert result.returncode == 0, result.stderr
        assert "named after the action" in result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    records = run("--picture", str(tmp_path / "demo.png"))
    assert {Path(r["query"]).stem for r in records} == set(CLIPS)
    for record in records:
        assert {p["label"] for p in record["predictions"]} == set(CLIPS)
        assert abs(sum(p["probability"] for p in record["predictions"]) - 1) < 1e-4
    # The README says so. Where a new model answers otherwise, the README is what is wrong.
    assert all(r["predictions"][0]["label"] == Path(r["query"]).stem for r in records)
    pictures = sorted(tmp_path.glob("demo*.png"))
    assert len(pictures) == len(CLIPS)
    with Image.open(pictures[0]) as image:
        assert image.width >= 400 and image.height >= 150
    assert list((tmp_path / "cache").rglob("*.bank"))
    assert [r["predictions"] for r in run()] == [r["predictions"] for r in records]


def test_the_demo_finds_what_happens_in_the_shipped_recording(tmp_path: Path, run_module) -> None:
    picture, kept = tmp_path / "events.png", str(tmp_path / "cache")
    done = run_module(
        "m2df_runtime.commands.run",
        "--window",
        "auto",
        "--json",
        "--picture",
        picture,
        cwd=tmp_path,
        XDG_CACHE_HOME=kept,
    )
    assert done.returncode == 0, done.stderr
    events = [event for event in map(json.loads, done.stdout.splitlines()) if event["type"] == "end"]
    assert {event["label"] for event in events} <= set(CLIPS)
    for label, start, end in RECORDED:  # the README says so
        assert any(one["label"] == label and one["start"] < end and start < one["end"] for one in events), label
    assert "clap from 0:08.2 to 0:11.3" in done.stderr
    with Image.open(picture) as image:
        assert image.width >= 1000


def test_the_shipped_bundle_is_small_verified_and_says_where_it_comes_from() -> None:
    assert demo_bundle().stat().st_size <= 20_000_000
    manifest = Bundle.open(demo_bundle()).manifest
    assert all(parity.passed for parity in manifest.parity.values())
    assert set(manifest.parity) == set(manifest.precisions)
    recipe = load_recipe(str(manifest.source.recipe))
    assert (manifest.source.model, manifest.source.seed) == (recipe.model, recipe.seed)
    assert manifest.clip == recipe.clip.deployed
    assert manifest.source.measured["test"]


def test_every_file_of_the_shipped_bundle_matches_its_hash() -> None:
    bundle = Bundle.open(demo_bundle())
    for graph in bundle.manifest.graphs.values():
        for info in graph.files.values():
            bundle.read(info)
    bundle.read(bundle.manifest.tokenizer)


def test_the_shipped_clips_are_those_of_the_rule_and_show_actions_that_no_training_has_seen() -> None:
    assert all(ACTIONS[name].split == "test" for name in CLIPS)
    shipped = demo_recording().parent
    made = demo_clips.demo_clips()
    assert set(made) == {path.relative_to(shipped) for path in shipped.rglob("*.mp4")}
    assert {shipped / path.parent.parent for path in made if path.parts[0] == "support"} == {demo_support()}
    assert {shipped / path.parent for path in made if path.parts[0] == "queries"} == {demo_queries()}
    for path, clip in made.items():
        source, at = open_source(shipped / path), [0, clip.n_frames // 2]
        frames = source.read(at)
        same = clip.read(at)[:, : frames.shape[1], : frames.shape[2]]
        assert source.n_frames == clip.n_frames
        assert np.corrcoef(frames.ravel(), same.ravel())[0, 1] > 0.9, path  # H.264 loses the noise alone


def test_the_demo_tells_what_its_recording_shows() -> None:
    truth = demo_clips.demo_recording().truth
    assert [(one.label, round(one.start, 1), round(one.end, 1)) for one in truth] == list(RECORDED)
