"""The speed benchmarks as commands on a tiny bundle, and the committed report against the results it is made of."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from echo_job import Echo
from tiny_bundle import DIM, FRAMES, SIZE, VIEWS, write_clip

from benchmarks.ceilings import work
from benchmarks.chain import Outputs, Work
from benchmarks.engines import EAGER, EngineSpec, TorchPeer
from benchmarks.gpu_check import merge
from benchmarks.interleaved import compare, run
from benchmarks.models import random_model, random_twin
from benchmarks.plots import Bar, Panel, bars, lines
from benchmarks.record import RESULTS, Machine, percentiles
from benchmarks.report import PAGE, build
from benchmarks.scaling import Engine, Point, Shapes, measure
from benchmarks.startup import installed
from benchmarks.workers import JobFailed, _serve, started
from m2df_runtime.backends.model import MANY_CLASSES
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.shipped import demo_bundle, demo_queries, demo_support
from m2df_runtime.errors import InputError
from m2df_train.model.options import head_options


def test_a_twin_has_the_shape_of_the_bundle() -> None:
    manifest = Bundle.open(demo_bundle()).manifest
    twin = random_twin(Bundle.open(demo_bundle()))
    assert twin.source.random_weights and twin.source.model == manifest.source.model
    assert (twin.clip, twin.backbone.dim, twin.head.views) == (manifest.clip, manifest.dim, manifest.views)
    assert twin.head.options == head_options("m2df", manifest.head.options)  # defaults where an older bundle has none


def test_latency_takes_turns_checks_answers_and_says_what_is_missing(
    tiny_bundle: Path, support_dir: Path, query_dir: Path, tmp_path: Path, run_module
) -> None:
    out = tmp_path / "results" / "latency-tiny.json"
    done = run_module(
        "benchmarks.latency", "--bundle", tiny_bundle, "--support", support_dir, "--query", query_dir / "red.mp4",
        "--way", 3, "--shot", 2, "--rounds", 4, "--warmup", 1, "--threads", 1, "--only", "m2df cpu|ONNX|tensorrt|bf16",
        "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    rounded = record["engines"].pop("m2df openvino bf16", None)  # where the processor computes in it
    assert rounded is None or (rounded["precision"], rounded["rounds"]) == ("bf16", 4)
    assert (rounded is None) == ("bf16" in record["left_out"].get("m2df openvino bf16", ""))
    assert set(record["engines"]) == {"m2df cpu fp32", "ONNX Runtime defaults"}
    for engine in record["engines"].values():
        assert engine["rounds"] == 4 and engine["checked"]["same_top1"]
        assert engine["checked"]["cosine"] == pytest.approx(1, abs=1e-6)  # the same graph
        ms = engine["ms"]
        assert ms["copy"] is None  # nothing is copied to a CPU
        for stage in ("decode", "resize", "visual", "support", "query"):
            assert 0 < ms[stage]["min"] <= ms[stage]["p50"] <= ms[stage]["p90"] <= ms[stage]["p99"]
        assert ms["total"]["min"] > sum(ms[stage]["min"] for stage in ("decode", "resize", "visual", "query")) * 0.99
    ratio = record["ratios"]["ONNX Runtime defaults"]["m2df cpu fp32"]["total"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert "TensorRT" in record["left_out"]["m2df tensorrt"]
    assert len(record["model"]["sha256"]) == 64 and record["environment"]["versions"]["numpy"] == np.__version__
    assert str(tmp_path) not in out.read_text()
    files = build(out.parent)
    assert set(files) == {PAGE, "latency-tiny.svg"} and "m2df cpu fp32" in files[PAGE]


def test_events_are_measured_and_their_report_is_made(tiny_bundle: Path, tmp_path: Path, run_module) -> None:
    out = tmp_path / "results" / "events.json"
    for colour in ("red", "green", "blue", "white"):
        for person in "abcd":
            write_clip(tmp_path / "clips" / colour / f"{colour}_{person}.mp4", colour, seed=ord(person), frames=40)
    done = run_module(
        "benchmarks.events", "--bundle", tiny_bundle, "--minutes", 1, "--length", 30, "--shots", 2, "--width", 96,
        "--actions", 4, "--joins", tmp_path / "clips", "--groups", "_([a-d])", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    for found in record["quality"].values():
        for split in ("validation", "test"):
            default, chosen = (found[split][rules]["events"]["iou_0.3"] for rules in ("defaults", "chosen"))
            assert default["true"] == chosen["true"] > 0
            if split == "validation" and default["f1"]:
                assert chosen["f1"] >= default["f1"]
        assert "walking" not in found["test"]["defaults"]["per_class"]
    joined = record["joined"]["defaults"]
    assert (joined["recordings"], joined["events"]["iou_0.3"]["true"]) == (4, 8)  # two of four classes are taught
    assert joined["background_hours"] == pytest.approx(4 * 2 * 1.6 / 3600, abs=1e-4)
    assert str(tmp_path) not in out.read_text()
    files = build(out.parent)
    assert "## Recordings" in files[PAGE] and "4 joins of real clips (hard cuts)" in files[PAGE]


@pytest.mark.slow
def test_what_recordings_cost_is_measured_and_its_report_is_made(tiny_bundle: Path, tmp_path: Path, run_module) -> None:
    out = tmp_path / "results" / "stream.json"
    done = run_module(
        "benchmarks.stream", "--bundle", tiny_bundle, "--seconds", 5, "--actions", 4, "--sample", 0, "--out", out
    )
    assert done.returncode == 0, done.stderr
    cameras = json.loads(out.read_text())["cameras"]
    assert len(cameras) == 2
    for found in cameras.values():
        assert found["windows"] == 7  # (5 - 2) / 0.5 + 1
        assert all(value >= 0 for value in found["stage_cpu_per_minute"].values())
        assert (found["usual_cpu_per_minute"], found["usual_left_out"]) == (None, "not asked for")
    assert str(tmp_path) not in out.read_text()
    page = build(out.parent)[PAGE]
    assert "A camera that shakes: **" in page and "not measured: not asked for" in page


@pytest.mark.slow
def test_a_whole_episode_of_the_pytorch_peer_costs_its_support_clips_too() -> None:
    specs = [EngineSpec(EAGER, "fp32", 1, backend="cpu", source="m2df-tiny")]
    support = tuple((demo_support() / label / "1.mp4",) for label in ("clap", "side_bend"))
    spec = random_model("m2df-tiny").clip
    prompts = np.random.default_rng(0).normal(size=(2, 128)).astype(np.float32)
    found = run(specs, Work(demo_queries() / "clap.mp4", support, spec), prompts, 2, 1, trained=False)
    assert found["reference"] == EAGER and found["left_out"] == {}
    assert found["engines"][EAGER]["rounds"] == found["official"]["rounds"] == 2
    assert found["ratios"] == {EAGER: {}, "official way": {}}  # neither is m2df


def test_the_work_of_a_vision_transformer_is_its_closed_form() -> None:
    tokens, width, patch, dim = 50, 384, 32, 384  # of open_clip's ViT-S-32 at 224 pixels
    layer = 12 * tokens * width**2 + 2 * tokens**2 * width  # projections and attention, multiplications with additions
    whole = 12 * layer + (tokens - 1) * 3 * patch**2 * width + width * dim
    assert work(random_model("ViT-S-32"))["visual"] == pytest.approx(8 * 2 * whole / 1e9, rel=1e-9)


def test_a_wrong_answer_is_a_failure_whatever_its_speed() -> None:
    rng = np.random.default_rng(0)

    def outputs(precision: str, noise: float = 0.0, turn: bool = False) -> Outputs:
        arrays = [np.random.default_rng(1).normal(size=shape).astype(np.float32) for shape in ((8, 64), (5, 2, 8, 64))]
        noisy = [array + noise * rng.normal(size=array.shape).astype(np.float32) for array in arrays]
        logits = np.array([-3.0, -1.0, -2.0], dtype=np.float32)
        return Outputs(*noisy, logits[::-1].copy() if turn else logits, "engine", precision, 1.0)

    exact = outputs("fp32")
    assert compare(exact, exact, trained=True) == ({"cosine": 1.0, "logits_error": 0.0, "same_top1": True}, None)
    for precision, bearable, too_much in (("fp32", 0.001, 0.05), ("fp16", 0.01, 0.1), ("int8", 0.05, 0.3)):
        assert compare(outputs(precision, bearable), exact, trained=True)[1] is None
        assert "cosine" in str(compare(outputs(precision, too_much), exact, trained=True)[1])
    assert "logits" in str(compare(outputs("int8", turn=True), exact, trained=False)[1])
    assert "cosine" in str(compare(outputs("fp32", float("nan")), exact, trained=False)[1])


def test_pytorch_peers_are_the_random_model_in_their_precision() -> None:
    from m2df_train.evaluation.torch_scorer import CheckpointScorer

    model = random_model("m2df-tiny")
    clips = np.random.default_rng(0).integers(0, 256, (2, 8, model.clip.size, model.clip.size, 3)).astype(np.uint8)
    expected = CheckpointScorer(model, "cpu").encode_clips(clips)
    exact, half = (TorchPeer("m2df-tiny", p, False, 1, "cpu").features(clips) for p in ("fp32", "bf16"))
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-5)
    cosine = (half * expected).sum(-1) / np.linalg.norm(half, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert cosine.min() > 0.99 and not np.allclose(half, expected, rtol=1e-4, atol=1e-5)


def test_scaling_times_every_point_and_reports_what_cannot_run(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / f"{FRAMES}x{DIM}").mkdir()
    shutil.copy(tiny_bundle / "visual.onnx", tmp_path)
    shutil.copy(tiny_bundle / "query.onnx", tmp_path / f"{FRAMES}x{DIM}")
    shapes = Shapes(DIM, SIZE, VIEWS)
    good, bad = (Engine("cpu", "fp32", folder, shapes, 1) for folder in (tmp_path, tmp_path / "none"))
    points = [Point("visual", FRAMES), Point("visual", FRAMES, clips=3), Point("query", FRAMES, classes=7)]
    points.append(Point("query", FRAMES, classes=MANY_CLASSES))
    samples, missing = measure([good], points, rounds=3, slow_rounds=2)
    assert {point: len(times) for point, times in samples[good.name].items()} == dict(
        zip(points, (2, 2, 3, 3), strict=True)
    )
    assert missing == {}
    samples, missing = measure([bad], points, rounds=1, slow_rounds=1)
    assert samples == {} and "query.onnx" in missing[bad.name]  # the image tower warms up with another size


def test_a_process_that_dies_says_so_and_the_others_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    names = ("lives", "at once", "between", "answers", "stopped", "stillborn", "unreadable", "unpicklable")
    with started([Echo(name) for name in names]) as (workers, missing):
        assert missing == {
            "stillborn": "its process ended with code 4",
            "unreadable": "EOFError: the file is cut",
        }
        by_name = {worker.name: worker for worker in workers}
        pids = {name: worker.ask("pid") for name, worker in by_name.items()}

        def ends(name: str, request: object, code: int) -> None:
            for _ in range(2):  # in the middle of the first, before the second
                with pytest.raises(JobFailed, match=f"its process ended with code {code}$"):
                    by_name[name].ask(request)
            with pytest.raises(JobFailed, match=f"its process ended with code {code}$"):
                by_name[name].peak_mib()
            assert by_name["lives"].ask(name) == name

        ends("at once", "die", 3)  # nothing is answered
        ends("answers", "die while answering", 5)
        os.kill(pids["between"], signal.SIGKILL)
        os.waitid(os.P_PID, pids["between"], os.WEXITED | os.WNOWAIT)  # dead before anything is sent
        ends("between", "hello", -signal.SIGKILL)
        # More than a pipe holds, to a process that reads none of it.
        os.kill(pids["stopped"], signal.SIGSTOP)
        os.waitid(os.P_PID, pids["stopped"], os.WSTOPPED)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(killed_when_sent_to, pids["stopped"])
            ends("stopped", bytes(1 << 26), -signal.SIGKILL)
        with pytest.raises(JobFailed, match="pickle"):
            by_name["unpicklable"].ask("cannot be pickled")
        assert by_name["lives"].peak_mib() > 1
    assert multiprocessing.active_children() == []
    assert "Traceback" not in capfd.readouterr().err


def killed_when_sent_to(pid: int) -> None:
    """Kill a stopped process as soon as this one's main thread sleeps, which it does when the pipe is full."""
    while Path(f"/proc/self/task/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        os.sched_yield()
    os.kill(pid, signal.SIGKILL)


def test_a_worker_whose_benchmark_is_gone_ends_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    here, there = multiprocessing.Pipe()
    with here:
        here.send("question")
    _serve(Echo("orphan"), there)  # what it sends first has no reader
    assert capfd.readouterr() == ("", "")


def test_startup_measures_processes_and_what_is_installed(
    tiny_bundle: Path, support_dir: Path, query_dir: Path, tmp_path: Path, run_module
) -> None:
    out = tmp_path / "results" / "startup.json"
    done = run_module(
        "benchmarks.startup", "--bundle", tiny_bundle, "--support", support_dir, "--query", query_dir / "red.mp4",
        "--rounds", 2, "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["imported_never"] == {"torch": True, "open_clip": True}
    assert record["peak_mib"] > 10 and record["import_ms_by_package"]["numpy"] > 0
    sizes = installed()
    assert {"m2df_runtime", "numpy", "onnxruntime", "pydantic-core"} <= set(sizes) and "torch" not in sizes
    assert sizes["numpy"] > 1_000_000 and record["installed_bytes"] == sum(sizes.values())
    assert "Start-up" in build(out.parent)[PAGE]


def test_teaching_measures_both_kinds_of_support(tiny_bundle: Path, tmp_path: Path, run_module) -> None:
    out = tmp_path / "results" / "teaching.json"
    done = run_module(
        "benchmarks.teaching", "--bundle", tiny_bundle, "--classes", 3, "--listed", 4, "--rounds", 2, "--out", out
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    for kind in ("folder", "file"):
        assert {*record["targets"], "add_s", "encode_s"} <= set(record[kind])
    assert "## Teaching" in build(out.parent)[PAGE]


def test_bulk_measures_each_stage_alone_and_both(
    tiny_bundle: Path, support_dir: Path, tmp_path: Path, run_module
) -> None:
    out = tmp_path / "results" / "bulk.json"
    done = run_module(
        "benchmarks.bulk", "--bundle", tiny_bundle, "--support", support_dir, "--clips", 3, "--seconds", 0.2,
        "--looped", 1, "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kinds = json.loads(out.read_text())["kinds"]
    for found in kinds.values():
        rates = {name: found[name]["per_second"] for name in ("reading", "inference", "bulk", "in_turn", "opencv")}
        assert min(rates.values()) > 0
        assert found["of_slowest"] == pytest.approx(rates["bulk"] / min(rates["reading"], rates["inference"]), rel=0.05)
    assert len(kinds) == 2 and "## Thousands of clips" in build(out.parent)[PAGE]


def test_the_server_is_measured_under_load_live_and_idle(tiny_bundle: Path, tmp_path: Path, run_module) -> None:
    out = tmp_path / "results" / "serve.json"
    done = run_module("benchmarks.serve", "--bundle", tiny_bundle, "--clips", 4, "--seconds", 3, "--out", out)
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert record["rate"] > 0 and record["bulk_rate"] > 0 and record["idle_mib"] > 20
    assert {"p50", "p95", "p99"} <= set(record["age_s"]) & set(record["answer_ms"])
    assert "## Server" in build(out.parent)[PAGE]


def test_cameras_are_measured_and_their_report_is_made(tiny_bundle: Path, tmp_path: Path, run_module) -> None:
    out = tmp_path / "results" / "cameras.json"
    done = run_module(
        "benchmarks.cameras", "--bundle", tiny_bundle, "--cameras", 2, "--seconds", 1, "--length", 10, "--actions", 4,
        "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(out.read_text())["cameras"]
    assert found["cameras"] == 2 and found["frames"] > 0
    assert set(found["dropped"]) <= {"stale", "full", "undecoded", "repeated", "late"}
    assert -0.01 < found["age_s"]["min"] <= found["age_s"]["p50"], "nothing is seen before it is due"
    assert "## Cameras" in build(out.parent)[PAGE]


def test_percentiles_have_their_closed_form_and_show_a_drift() -> None:
    values = percentiles([float(v) for v in [*range(0, 101, 2), *range(1, 101, 2)]])
    assert [values[name] for name in ("p50", "p90", "p95", "p99", "min")] == [50, 90, 95, 99, 0]
    assert values["stationary"] and not percentiles([1.0, 1.0, 1.2, 1.2])["stationary"]
    assert percentiles([1.0, 1.0, 1.2, 1.2])["drift"] == 1.2


def test_the_committed_page_is_what_its_results_give() -> None:
    made = build(RESULTS)
    for name, text in made.items():
        assert (RESULTS / name).read_text(encoding="utf-8") == text, f"{name}: run python -m benchmarks.report"
    assert {path.name for path in RESULTS.glob("*.svg")} == {name for name in made if name.endswith(".svg")}


def test_the_report_shows_a_gpu_check_and_refuses_what_is_no_result(tmp_path: Path) -> None:
    times = {"p50": 0.8, "p95": 0.9, "min": 0.7, "drift": 1.0}
    engine = {
        "cosine": {"visual": 0.9999},
        "milliseconds": {"cuda-graphs": {"chain": times}},
        "throughput": {"clips_per_second": 1000.0},
    }
    work = tmp_path / "work"
    for subject in ("vit-b-16", "demo"):
        (work / subject).mkdir(parents=True)
        (work / subject / "tensorrt.json").write_text(json.dumps(engine))
    others = {"matmul_tflops": 500.0, "torch-eager-fp16": {**times, "p50": 3.2}, "broken": {"failed": "no"}}
    (work / "others.json").write_text(json.dumps(others))
    results = tmp_path / "results"
    merge(work, json.dumps({"gpu": "H", "tensorrt": "11.4"}), results / "gpu.json")
    page = build(results)[PAGE]
    assert "| torch-eager-fp16 / tensorrt | **4** |" in page  # 3.2 / 0.8
    (results / "gpu.json").write_text("{}")
    with pytest.raises(InputError, match=r"gpu\.json"):
        build(results)
    (results / "gpu.json").rename(results / "notes.json")
    with pytest.raises(InputError, match=r"notes\.json"):
        build(results)


def test_plots_draw_every_value_and_are_always_the_same() -> None:
    rows = [Bar("a & b", [30.0, 10.0], True), Bar("long", [500.0, 1.0], False)]
    drawn = bars(("x", "y"), rows, "ms", cut_at=100)
    assert drawn == bars(("x", "y"), rows, "ms", cut_at=100)
    assert "a &amp; b" in drawn and "40.0 ms" in drawn and "… 501 ms" in drawn
    plot = lines([Panel("p", {"cpu": [(1, 2.0), (10, 2000.0)]})], "ms")
    assert plot.count("<circle") == 2 and "1,000 ms" in plot


def test_the_machine_knows_how_busy_others_keep_it() -> None:
    used = Machine().environment()["others_used"]
    assert used is None or 0 <= float(str(used)) <= 1
