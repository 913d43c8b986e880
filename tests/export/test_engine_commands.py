"""`m2df-export engines` and `m2df-run` on engines, when something is in the way.

On stand-ins for TensorRT and the GPU's driver (`fake_tensorrt`, `fake_cuda`), which never count as having run them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import pytest
from exports import export_here
from fake_cuda import install
from full_disk import file_size_limit
from signal_at import signal_at, wait_until_stopped
from tiny_bundle import write_bundle

from m2df_runtime.backends.tensorrt.backend import open_tensorrt
from m2df_runtime.backends.tensorrt.cuda import open_device
from m2df_runtime.backends.tensorrt.engine_files import EngineIndex
from m2df_runtime.commands.run import cli as run_command

GRAPHS = ["visual", "text", "support", "query"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Where the stand-ins are installed."""
    return tmp_path_factory.mktemp("packages")


@contextmanager
def started(packages, folder, **env):
    """This process as one that was just started, in a folder of a machine with a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in install(packages, **env).items():
            patch.setenv(name, value)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.syspath_prepend(packages)
        forget()
        yield patch
    forget()


def forget():
    """Have TensorRT and the driver be looked for again."""
    open_tensorrt.cache_clear()
    open_device.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("cuda", "tensorrt")]:
        del sys.modules[name]


def build(packages, folder, *args, code=0, **env):
    """Run `m2df-export engines` on `bundle` in a folder; its lines."""
    with started(packages, folder, **env) as patch:
        done = export_here(patch, folder, "engines", "--bundle", "bundle", "--json", *args)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()] if code == 0 else done.stderr.splitlines()


@pytest.fixture(scope="module")
def _built(tmp_path_factory, packages):
    """A bundle with engines for the stand-in."""
    folder = tmp_path_factory.mktemp("built")
    write_bundle(folder / "bundle")
    build(packages, folder)
    return folder


@pytest.fixture
def engines(packages, tmp_path):
    return partial(build, packages, tmp_path)


@pytest.fixture
def bundle(_built, tmp_path):
    return shutil.copytree(_built / "bundle", tmp_path / "bundle")


@pytest.fixture
def arguments(bundle, support_dir, query_dir):
    """Of `m2df-run` with the bundle."""
    clips = ("--support", support_dir, "--query", query_dir / "red.mp4")
    return ("--bundle", bundle, *clips, "--reject", "off", "--json")


@pytest.fixture
def classify(arguments, tmp_path, packages, run_here):
    """Run `m2df-run` with the bundle; its answer's object and what it said."""

    def run(**env):
        with started(packages, tmp_path, **env):
            done = run_here(run_command, *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    return run


def reused(records):
    assert [record["graph"] for record in records] == GRAPHS
    return [record["graph"] for record in records if record["reused"]]


def test_engines_are_built_compared_and_used(engines, arguments, packages, run_module):
    again = engines()
    assert reused(again) == GRAPHS
    assert all(record["cosine"] == pytest.approx(1.0, abs=1e-6) for record in again)
    done = run_module("m2df_runtime.commands.run", *arguments, **install(packages))
    answer = json.loads(done.stdout)
    assert (answer["backend"], answer["predictions"][0]["label"], done.stderr) == ("tensorrt", "red", "")


def test_comparison_keeps_to_the_sizes_the_engines_are_built_for(tmp_path, bundle, engines):
    """Neither the usual clips (6), nor classes (5), nor support clips (2), nor texts (5) fit these."""
    ranges = [("--batch", text) for text in ("8,8,9", "C=7,8,9", "K=3,3,3", "P=1,2,3")]
    built = engines(*(word for pair in ranges for word in pair))
    assert reused(built) == []
    assert all(record["cosine"] == pytest.approx(1.0, abs=1e-6) for record in built)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--batch", "4,2,8"], "sizes must rise"),
        (["--batch", "0,1,2"], "sizes must rise from at least 1"),
        (["--batch", "C=1,2"], "not MIN,OPT,MAX"),
        (["--batch", "X=1,2,3"], "not an axis"),
        (["--batch", "1,1,100000000"], "TensorRT's tensors have at most 2147483647 elements"),
        (["--precision", "fp16"], "no fp16 visual graph"),
    ],
)
def test_sizes_that_cannot_be_are_refused_in_a_line(bundle, engines, args, words):
    said = engines(*args, code=2)
    assert words in said[-1]
    assert len(said) == 1 or said[0].startswith("Usage:")


def test_opset_that_this_tensorrt_does_not_read_is_refused_in_a_line(bundle, engines):
    (line,) = engines(version="8.5.3.1", code=2)
    assert "opset 18, TensorRT 8.5.3.1 reads up to 16 (export again with --opset 16)" in line


@pytest.mark.slow
def test_bundle_moved_to_another_gpu_says_so_and_runs_on(bundle, engines, classify):
    answer, said = classify(FAKE_CAPABILITY="80")
    assert (answer["backend"], answer["predictions"][0]["label"]) == ("cpu", "red")
    (line,) = said.splitlines()
    assert "not on TensorRT" in line and "built for sm90, this GPU is sm80" in line
    assert "m2df-export engines --bundle" in line
    assert reused(engines(FAKE_CAPABILITY="80")) == []
    assert classify(FAKE_CAPABILITY="80")[0]["backend"] == classify()[0]["backend"] == "tensorrt"  # both are there


@pytest.mark.slow
def test_swapped_engine_file_is_not_loaded_and_it_alone_is_built_again(bundle, engines, classify):
    (folder,) = (bundle / "engines").iterdir()
    shutil.copy(folder / "query.engine", folder / "visual.engine")
    answer, said = classify()
    assert answer["backend"] == "cpu"
    assert "visual.engine does not match its hash in index.json" in said and len(said.splitlines()) == 1
    assert reused(engines()) == ["text", "support", "query"]
    assert classify()[0]["backend"] == "tensorrt"


@pytest.mark.slow
def test_stale_engine_is_not_loaded_and_it_alone_is_built_again(bundle, engines, classify):
    """The bundle was exported again with another head, and then TensorRT was updated."""
    kept = shutil.copytree(bundle / "engines", bundle.parent / "engines")
    shutil.rmtree(bundle)
    write_bundle(bundle, support_weight=0.5)
    shutil.copytree(kept, bundle / "engines")
    answer, said = classify()
    assert answer["backend"] == "cpu" and "built from another export of the graph" in said
    assert reused(engines()) == ["visual", "text", "query"]
    answer, said = classify(version="11.0.0.114")
    assert answer["backend"] == "cpu" and "built with TensorRT 11.4.0.106, this is 11.0.0.114" in said


@pytest.mark.slow
def test_version_compatible_engines_are_compared_when_they_were_just_built(tmp_path, engines, classify):
    bundle = tmp_path / "bundle"
    shutil.rmtree(bundle / "engines")
    built = engines("--version-compatible")
    assert all(record["cosine"] == pytest.approx(1.0, abs=1e-6) for record in built)
    (line,) = engines("--version-compatible", code=3)  # these might be anyone's
    assert "holds code that would run on this machine (set M2DF_ENGINE_HOST_CODE=1" in line
    assert classify()[0]["backend"] == "cpu"
    assert classify(M2DF_ENGINE_HOST_CODE="1")[0]["backend"] == "tensorrt"


@pytest.mark.slow
def test_build_that_is_killed_or_has_company(tmp_path, bundle, engines, classify, packages):
    """SIGKILL in the middle of a build: every engine is the old or the new one, and the next build goes on."""
    (folder,) = (bundle / "engines").iterdir()
    command = [sys.executable, "-m", "m2df_export.commands.export", "engines", "--bundle", "bundle", "--force"]
    environment = {**os.environ, **install(packages), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    paths = environment["PYTHONPATH"]
    environment |= signal_at(tmp_path / "site", "os.rename", r"/text\.engine$", signal.SIGSTOP, paths=paths)
    before = (folder / "text.engine").stat().st_mtime_ns
    first = (folder / "visual.engine").stat().st_mtime_ns
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as build:
        wait_until_stopped(build)  # it holds the lock for as long as the second one needs
        assert (folder / "visual.engine").stat().st_mtime_ns != first
        try:
            (line,) = engines(code=2)
            assert "another process is writing it (wait for it, or choose another place)" in line
        finally:
            build.kill()  # a stopped process would be waited for for ever
    assert build.returncode == -signal.SIGKILL
    assert (folder / "text.engine").stat().st_mtime_ns == before
    (folder / ".text.engine.abc.m2df-tmp").write_bytes(b"half")  # where the kill meets a write
    assert classify()[0]["backend"] == "tensorrt"
    assert reused(engines()) == GRAPHS
    assert not list(folder.glob(".*")) and [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_full_disk_names_the_file_and_keeps_the_engines_before(tmp_path, bundle, engines):
    """A disk that is full after the first engine: files beyond a size cannot be written."""
    (folder,) = (bundle / "engines").iterdir()
    shutil.rmtree(folder)
    sizes = {name: (bundle / f"{name}.onnx").stat().st_size for name in GRAPHS}
    room = sizes["visual"] + 3000
    assert sizes["text"] > room
    with file_size_limit(room):
        (line,) = engines(code=2)
    assert line == "error: bundle/engines/sm90-trt11.4-fp32/text.engine: File too large"
    assert set(EngineIndex.read(folder).engines) == {"visual"}
    assert reused(engines()) == ["visual"]
