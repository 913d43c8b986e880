"""What is fastest on this machine: measured among those with the right answers, kept, and taken as long as it holds."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from full_disk import file_size_limit
from tiny_bundle import graph_bytes, write_bundle

from benchmarks.ruled import ruled
from m2df_runtime import user_cache
from m2df_runtime.backends.measured import Machine, Timed, keep
from m2df_runtime.backends.model import Model
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.shipped import demo_bundle, demo_queries
from m2df_runtime.clips.opening import open_source
from m2df_runtime.commands.doctor import cli
from m2df_runtime.commands.fastest import measure_engines
from m2df_runtime.cpus import available_cpus, thread_count
from m2df_runtime.errors import CheckFailed, EnvironmentMissing
from m2df_runtime.files import sha256_bytes
from m2df_runtime.parity import GATES, drift
from m2df_runtime.pixels.load import load_clip

ROOT = Path(__file__).parents[2]
MEASURE = (sys.executable, "-m", "m2df_runtime.commands.doctor", "--measure")
if find_spec("openvino") is None:
    pytest.skip("needs OpenVINO: pip install 'm2df[openvino]'", allow_module_level=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that holds fp16 graphs, too, which are said to have passed, and give other prototypes."""
    folder = write_bundle(tmp_path_factory.mktemp("measured") / "bundle")
    other = graph_bytes("support", support_weight=50.0)
    (folder / "other.onnx").write_bytes(other)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, graph in manifest["graphs"].items():
        graph["files"]["fp16"] = graph["files"]["fp32"]
        if name == "support":
            graph["files"]["fp16"] = {"path": "other.onnx", "sha256": sha256_bytes(other), "bytes": len(other)}
    manifest["parity"] = {precision: {"passed": True, "cpu_ms": 1.0} for precision in ("fp32", "fp16")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def run_once(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The cache folder after `m2df-doctor --measure`, and the lines that it printed."""
    cache = tmp_path_factory.mktemp("cache")
    done = subprocess.run(
        [*MEASURE, bundle, "--rounds", "3", "--busy", "--json"],
        cwd=ROOT, env={**os.environ, "XDG_CACHE_HOME": str(cache)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return cache, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def kept(run_once: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that was written, in a cache folder that is this test's."""
    user_cache._private.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(shutil.copytree(run_once[0], tmp_path / "cache")))
    (file,) = (tmp_path / "cache" / "m2df" / "measured").iterdir()
    changed(file, others=None)
    return file


def changed(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def timed(*fastest_first: str) -> list[dict[str, object]]:
    return [
        {"backend": name.split()[0], "precision": name.split()[1], "ms": float(place)}
        for place, name in enumerate(fastest_first, 1)
    ]


def test_every_engine_is_timed_that_gives_the_models_answers(run_once: tuple[Path, list[dict[str, Any]]]) -> None:
    cache, lines = run_once
    found = {(line["backend"], line["precision"]): line for line in lines}
    right = [line for line in lines if line["problem"] is None]
    assert {(line["backend"], line["precision"]) for line in right if line["precision"] != "bf16"} == {
        ("cpu", "fp32"),
        ("openvino", "fp32"),
    }
    ahead = sorted((line for line in right if not line["behind"]), key=lambda line: line["ms"])
    behind = sorted((line for line in right if line["behind"]), key=lambda line: line["ms"])
    assert lines[: len(right)] == ahead + behind
    assert {line["rounds"] for line in ahead} == {3} and {line["rounds"] for line in behind} <= {2}
    assert [line["auto"] for line in lines] == [line is right[0] for line in lines]
    assert right[0]["times_fastest"] == 1.0
    for backend in ("cpu", "openvino"):  # the other prototypes are seen, whatever the manifest says
        assert found[backend, "fp16"]["problem"].startswith("not the model's answers: cosine ")
        assert found[backend, "fp16"]["ms"] is None
    assert "CUDAExecutionProvider" in found["cuda", None]["problem"]
    (file,) = (cache / "m2df" / "measured").iterdir()
    kept = json.loads(file.read_text())
    assert kept["others"] is None or 0.1 < kept["others"] <= 1
    assert kept["timed"] == [
        {"backend": one["backend"], "precision": one["precision"], "ms": one["ms"]} for one in right
    ]


def test_auto_takes_the_fastest_of_the_file(bundle: Path, kept: Path, command, support_dir: Path) -> None:
    opened = Bundle.open(bundle)
    for fastest, other in (("openvino fp32", "cpu fp32"), ("cpu fp32", "openvino fp32")):
        changed(kept, timed=timed(fastest, other), date="2026-03-01")
        model = Model(opened)
        assert f"{model.backend} {model.precision}" == fastest
        assert model.about_engine == f"{fastest}, measured here on 2026-03-01: 2.0 times as fast as {other}"
        done = command("--bundle", bundle, "--support", support_dir, "--query", support_dir / "red", "--json")
        assert done.stderr.startswith(f"engine: {model.about_engine}\n")
        assert {json.loads(line)["backend"] for line in done.stdout.splitlines()} == {fastest.split()[0]}
    # What is named stays, and the rest is what was fastest with it.
    changed(kept, timed=timed("openvino fp16", "cpu fp16", "cpu fp32"))
    assert [Model(opened, backend=name).precision for name in ("cpu", "openvino")] == ["fp16", "fp16"]
    assert Model(opened, precision="fp32").backend == "cpu"
    named = Model(opened, backend="openvino", precision="fp32")
    assert (named.backend, named.precision, named.about_engine) == ("openvino", "fp32", None)
    # Benchmarks name both, or one measurement would change the next figures.
    assert (ruled(bundle).backend, ruled(bundle).precision) == ("cpu", "fp32")


def test_only_a_lead_that_is_one_is_told_and_who_else_was_busy(bundle: Path, kept: Path) -> None:
    for ms, others, told in (
        (1.04, None, ""),
        (1.06, None, ": 1.1 times as fast as cpu fp32"),
        (0.5, 0.754, " while other programs had 75% of the processors"),  # of few queries
    ):
        both = timed("openvino fp32", "cpu fp32")
        both[1]["ms"] = ms
        changed(kept, timed=both, date="2026-03-01", others=others)
        assert Model(Bundle.open(bundle)).about_engine == f"openvino fp32, measured here on 2026-03-01{told}"


def test_every_number_of_threads_has_its_own_measurement(bundle: Path, kept: Path) -> None:
    changed(kept, timed=timed("openvino fp32", "cpu fp32"), date="2026-03-01")
    opened, usual = Bundle.open(bundle), thread_count(None)
    before = f"{usual} threads" if usual > 1 else "1 thread"
    why = f"measured on 2026-03-01 with {before}, now {usual + 1} threads (m2df-doctor --measure --threads {usual + 1})"
    assert Model(opened, threads=usual + 1).about_engine == f"cpu fp32, by the fixed rule: {why}"
    keep(opened, Machine.here(usual + 1), [Timed(backend="cpu", precision="fp16", ms=1.0)])
    models = [Model(opened, threads=threads) for threads in (None, usual, usual + 1)]
    assert [model.backend for model in models] == ["openvino", "openvino", "cpu"]
    assert models[2].precision == "fp16"


def test_what_a_bundle_does_not_vouch_for_is_not_taken(bundle: Path, kept: Path, tmp_path: Path) -> None:
    """The same graphs, of which fp16 failed at export; int8 is not in them."""
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["parity"]["fp16"]["passed"] = False
    (copy / "manifest.json").write_text(json.dumps(manifest))
    changed(kept, timed=timed("cpu int8", "openvino fp16", "openvino fp32", "cpu fp32"))
    model = Model(Bundle.open(copy))
    assert (model.backend, model.precision) == ("openvino", "fp32")
    changed(kept, timed=timed("cpu int8", "cpu fp8"), date="2026-03-01")
    for asked, of in (({}, ""), ({"backend": "openvino"}, " of openvino"), ({"precision": "fp32"}, " of fp32")):
        model = Model(Bundle.open(copy), **asked)
        why = f"nothing that was measured{of} on 2026-03-01 may be taken (m2df-doctor --measure)"
        assert model.about_engine == f"{model.backend} fp32, by the fixed rule: {why}"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("threads", 4096, r"with 4096 threads, now \d+ threads?"),
        ("processor", "Z80", "with Z80, now .+"),
        ("engines", {"openvino": "1.0"}, r"with openvino 1\.0, now onnxruntime .+, openvino .+"),
        ("engines", {}, r"without onnxruntime .+, openvino .+"),
    ],
)
def test_another_machine_or_version_does_not_count_and_is_named(
    bundle: Path, kept: Path, field: str, value: object, said: str
) -> None:
    machine = json.loads(kept.read_text())["machine"]
    changed(kept, timed=timed("openvino fp32", "cpu fp32"), date="2026-03-01", machine=machine | {field: value})
    for place in (kept, kept.with_name(kept.name[:17] + 16 * "0" + ".json")):  # as this machine's, and as another's
        kept.rename(place)
        model = Model(Bundle.open(bundle))
        assert (model.backend, model.precision) == ("cpu", "fp32")
        assert model.about_engine is not None
        pattern = rf"cpu fp32, by the fixed rule: measured on 2026-03-01 {said} \(m2df-doctor --measure\)"
        assert re.fullmatch(pattern, model.about_engine), model.about_engine


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2}', "[" * 5000, '{"timed": []}'])
def test_a_file_that_cannot_be_used_is_named(
    bundle: Path, kept: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept.write_text(content)
    model = Model(Bundle.open(bundle))
    why = "what was measured here cannot be read (m2df-doctor --measure)"
    assert model.about_engine == f"cpu fp32, by the fixed rule: {why}"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"{kept}: not used: ") and "\n" not in record.getMessage()


@pytest.mark.parametrize("whose", ["another user's", "anybody's"])
def test_a_folder_that_others_can_fill_is_not_believed(
    bundle: Path, kept: Path, whose: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changed(kept, timed=timed("openvino fp32", "cpu fp32"))
    if whose == "another user's":
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    else:
        kept.parent.chmod(0o777)
    opened = Bundle.open(bundle)
    why = "what was measured here is not believed (m2df-doctor --measure)"
    assert Model(opened).about_engine == f"cpu fp32, by the fixed rule: {why}"
    assert "so nothing in it is believed" in caplog.text
    done = CliRunner().invoke(cli, ["--measure", str(bundle)])
    assert isinstance(done.exception, CheckFailed) and done.output == ""  # before anything is measured
    assert done.exception.message.startswith("what is measured would not be kept: ")


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_measured(bundle: Path, kept: Path) -> None:
    shutil.rmtree(kept.parent)
    kept.parent.write_text("")
    done = CliRunner().invoke(cli, ["--measure", str(bundle)])
    assert isinstance(done.exception, NotADirectoryError) and done.output == ""
    assert done.exception.filename == str(kept.parent)


@pytest.mark.skipif(
    not Path("/proc/stat").is_file() or available_cpus() < (os.cpu_count() or 1),
    reason="the system does not say who is busy, or not all of it may be kept busy",
)
def test_nothing_is_kept_of_a_busy_machine(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('one engine is enough')")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(-(-(os.cpu_count() or 1) // 2))]
    try:
        done = subprocess.run(
            [*MEASURE, bundle, "--rounds", "1", "--json"],
            cwd=ROOT, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{ROOT}"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert done.returncode == 1
    assert re.fullmatch(r"error: nothing is kept: other programs had \d+% of the processors, .+\n", done.stderr)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert any(line["ms"] for line in lines) and not any(line["auto"] for line in lines)
    assert list((tmp_path / "m2df" / "measured").iterdir()) == []


def test_an_engine_that_no_longer_works_is_replaced_by_the_rule(
    bundle: Path, kept: Path, command, support_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(kept, timed=timed("openvino fp32"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    done = command("--bundle", bundle, "--support", support_dir, "--query", support_dir / "red/0.mp4", "--json")
    assert done.returncode == 0, done.stderr
    warning = "warning: openvino fp32, the fastest here, cannot be used: OpenVINO cannot be used: "
    assert done.stderr.startswith(warning)
    said = "engine: cpu fp32, by the fixed rule: openvino fp32, the fastest here, cannot be used"
    assert said in done.stderr.splitlines()
    assert json.loads(done.stdout)["backend"] == "cpu"


def test_an_engine_that_no_longer_works_is_replaced_by_the_next_that_was_measured(
    bundle: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    changed(kept, timed=timed("openvino fp32", "openvino fp16", "cpu fp16", "cpu fp32"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    model = Model(Bundle.open(bundle))
    said = "measured here: openvino fp32 and openvino fp16, the fastest here, cannot be used"
    assert (model.backend, model.precision, model.about_engine) == ("cpu", "fp16", f"cpu fp16, {said}")
    assert caplog.text.count("cannot be used: OpenVINO cannot be used: ") == 2


def test_what_cannot_be_kept_is_printed_and_auto_does_not_take_it(
    bundle: Path, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = kept.read_bytes()
    with file_size_limit(0), pytest.raises(OSError, match="File too large"):
        measure_engines(bundle, 1, None, busy=True, as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any(line["ms"] for line in lines) and not any(line["auto"] for line in lines)
    assert kept.read_bytes() == before


@pytest.mark.parametrize("option", ["--rounds 3", "--threads 1", "--busy"])
def test_some_options_are_of_measuring(option: str) -> None:
    done = CliRunner().invoke(cli, option.split())
    assert (done.exit_code, f"{option.split()[0]} is of --measure" in done.output) == (2, True)


def test_bf16_is_computed_where_the_processor_has_it_and_refused_elsewhere(command) -> None:
    bundle = Bundle.open(demo_bundle())
    clip = load_clip(open_source(next(iter(sorted(demo_queries().iterdir())))), bundle.manifest.clip)[None]
    try:
        model = Model(bundle, precision="bf16", threads=1)
    except EnvironmentMissing as error:
        assert "OpenVINO computes no bf16 on this processor" in error.message
        done = command("--precision", "bf16")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
    else:
        plain = Model(bundle, backend="openvino", threads=1)
        moving = slice(bundle.manifest.dim - bundle.manifest.head.options["appearance"]["dim"])
        found = drift(*(one.encode_clips(clip)[..., moving] for one in (model, plain)))
        assert (model.backend, model.precision, model.files) == ("openvino", "bf16", "fp16")
        assert found.problem(GATES["bf16"]) is None and found.max_abs > np.finfo(np.float32).eps
    done = command("--precision", "bf16", "--backend", "cpu")
    assert (done.returncode, done.stderr) == (
        2,
        "error: cpu does not compute in bf16 (take --backend openvino, or another --precision)\n",
    )
