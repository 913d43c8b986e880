"""The model repository for Triton: schema, agreement with the ONNX files, answers, versions, refusals."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from exports import take_graphs
from google.protobuf import text_format
from tiny_bundle import write_bundle, write_support
from triton_server import Server, read_config, serve

from m2df_export.commands.export import cli as export_command
from m2df_export.triton.config import Target
from m2df_export.triton.repository import write_repository
from m2df_runtime.backends.model import Model
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.shipped import demo_bundle, demo_queries, demo_support
from m2df_runtime.clips.opening import open_source
from m2df_runtime.commands.console import guarded
from m2df_runtime.commands.run import cli as run_command
from m2df_runtime.errors import InputError
from m2df_runtime.pixels.load import load_clip
from m2df_runtime.pixels.spec import ClipSpec

ROOT = Path(__file__).parents[2]
QUERIES = sorted(demo_queries().iterdir())
TINY = Target("cpu", "fp32")


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def call(command, *args) -> Done:
    """A command as its entry point runs it, without the start of a process."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = guarded(lambda: command.main(list(map(str, args)), standalone_mode=False))
    return Done(code, out.getvalue(), err.getvalue())


def export(*args) -> Done:
    return call(export_command, "triton", "--bundle", demo_bundle(), *args)


def recognise(support, query) -> list[dict]:
    done = call(run_command, "--bundle", demo_bundle(), "--support", support, "--query", query, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and time of writing."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def support(tmp_path_factory):
    return shutil.copytree(demo_support(), tmp_path_factory.mktemp("demo") / "support")


@pytest.fixture(scope="module")
def repository(support):
    """The demo bundle with the demo clips, written by the command."""
    folder = support.parent / "models"
    done = export("--support", support, "--out", folder, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["device"], record["precision"]) == ("gpu", "fp16")
    assert record["classes"] == ["clap", "golf_swing", "high_knees", "punch_person", "side_bend"]
    assert {name: model["version"] for name, model in record["models"].items()} == dict.fromkeys(
        ("visual", "query", "bank", "m2df"), 1
    )
    return folder


@pytest.fixture(scope="module")
def server(repository):
    return Server(repository)


def query_clips(server):
    spec = ClipSpec.model_validate_json(server.models["m2df"].config.parameters["clip"].string_value)
    return np.stack([load_clip(open_source(path), spec) for path in QUERIES])


def test_configuration_is_what_an_operator_expects(server):
    configs = {name: model.config for name, model in server.models.items()}
    assert set(configs) == {"visual", "query", "bank", "m2df"}
    for name in ("visual", "query", "bank"):
        assert [(group.kind, group.count) for group in configs[name].instance_group] == [(1, 1)]  # KIND_GPU
    for name in ("visual", "bank"):
        assert configs[name].max_batch_size == 16
        assert configs[name].dynamic_batching.max_queue_delay_microseconds > 0
        assert configs[name].version_policy.latest.num_versions == 2
    assert (configs["query"].max_batch_size, configs["query"].HasField("dynamic_batching")) == (0, False)
    assert not configs["m2df"].instance_group  # which an ensemble must not have
    assert [warm.batch_size for warm in configs["visual"].model_warmup] == [1, 16]
    for warm in configs["visual"].model_warmup:
        assert list(warm.inputs["frames"].dims) == list(configs["visual"].input[0].dims)
    assert server.models["m2df"].labels == {
        "labels.1.txt": ["clap", "golf_swing", "high_knees", "punch_person", "side_bend"]
    }


def test_schema_of_tritonclient_refuses_what_it_does_not_know(repository):
    text = (repository / "visual" / "config.pbtxt").read_text(encoding="utf-8")
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text + "dynamic_batchin { }\n", type(read_config(repository / "visual"))())


def test_pipeline_answers_as_m2df_run_does(server, support):
    records = recognise(support, demo_queries())
    assert [Path(record["query"]) for record in records] == QUERIES
    clips = query_clips(server)
    together = server.infer("m2df", {"frames": clips})
    for row, record in enumerate(records):
        alone = server.infer("m2df", {"frames": clips[row : row + 1]})
        expected = {p["label"]: p for p in record["predictions"]}
        for outputs, at in ((together, row), (alone, 0)):
            assert set(outputs["classes"][at]) == set(expected)
            for column, label in enumerate(outputs["classes"][at]):
                # Other batch sizes take other paths through the kernels, which round differently.
                assert outputs["probabilities"][at, column] == pytest.approx(expected[label]["probability"], abs=1e-5)
                assert outputs["distances"][at, column] == pytest.approx(expected[label]["distance"], abs=1e-4)
            assert outputs["rejected"][at].item() is record["rejected"]
    best = together["classes"][np.arange(len(clips)), together["logits"].argmax(axis=1)]
    assert list(best) == [path.stem for path in QUERIES]


def test_query_model_takes_a_bank_of_the_clients_own(server, support):
    bundle = Bundle.open(demo_bundle())
    bank = SupportBank.of(Model(bundle, backend="cpu"), support)
    clips = query_clips(server)
    features = server.infer("visual", {"frames": clips})["features"]
    own = server.infer("query", {"features": features, "prompts": bank.prompts[:3], "prototypes": bank.prototypes[:3]})
    expected = Model(bundle, backend="cpu").match(features, bank.prompts[:3], bank.prototypes[:3])
    assert own["logits"].shape == (len(clips), 3)
    np.testing.assert_array_equal(own["logits"], expected.logits)


def test_client_of_the_page_works(repository, support):
    page = (ROOT / "docs" / "triton.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    best = recognise(support, QUERIES[0])[0]["predictions"][0]
    client = support.parent / "client.py"
    client.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with serve(repository) as address:
        command = [sys.executable, client, address, QUERIES[0]]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [best["label"], f"{best['probability']:.3f}", "version", "1"]


def test_classification_extension_names_the_classes(repository, server):
    import tritonclient.grpc as triton

    clips = query_clips(server)
    with serve(repository) as address:
        client = triton.InferenceServerClient(
            f"dns:///{address}", channel_args=[("grpc.lb_policy_name", "round_robin")]
        )
        frames = triton.InferInput("frames", clips.shape, "UINT8")
        frames.set_data_from_numpy(clips)
        wanted = [triton.InferRequestedOutput("probabilities", class_count=2)]
        result = client.infer("m2df", [frames], outputs=wanted).as_numpy("probabilities")
    assert [row[0].decode().split(":")[2] for row in result] == [path.stem for path in QUERIES]


def test_new_action_is_the_next_version_and_touches_no_other(repository, support, tmp_path):
    models = shutil.copytree(repository, tmp_path / "models")
    clips = shutil.copytree(support, tmp_path / "support")
    before = content(models)
    arguments = ("--support", clips, "--out", models, "--json")
    assert all(not model["new"] for model in json.loads(export(*arguments).stdout)["models"].values())
    assert content(models) == before

    shutil.copytree(clips / "clap", clips / "applause")
    for index, path in enumerate(sorted((clips / "applause").iterdir())):
        shutil.copy(QUERIES[index + 2], path)  # other pixels than those of any class
    shutil.rmtree(clips / "clap")
    (clips / "golf swing").mkdir()
    shutil.copy(QUERIES[1], clips / "golf swing")
    done = json.loads(export(*arguments).stdout)
    assert {name: (model["version"], model["new"]) for name, model in done["models"].items()} == {
        "visual": (1, False),
        "query": (1, False),
        "bank": (2, True),
        "m2df": (2, True),
    }
    after = content(models)
    assert {path for path in before if after[path] != before[path]} == {"m2df/config.pbtxt"}
    assert set(after) - set(before) == {"bank/2/model.onnx", "m2df/2/pipeline.json", "m2df/labels.2.txt"}

    server = Server(models)  # loads versions of 5 and of 6 classes with one configuration
    outputs = server.infer("m2df", {"frames": query_clips(server)})
    assert list(outputs["classes"][0]) == done["classes"] == server.models["m2df"].labels["labels.2.txt"]
    assert len(done["classes"]) == 6
    features = server.infer("visual", {"frames": query_clips(server)})["features"]
    assert server.infer("bank", {"features": features}, version=1)["logits"].shape == (5, 5)


def test_unknown_action_is_rejected_as_m2df_run_does(repository, support, tmp_path):
    clips = shutil.copytree(support, tmp_path / "support")
    shutil.rmtree(clips / "clap")
    assert recognise(clips, QUERIES[0])[0]["rejected"] is True
    models = tmp_path / "models"
    assert export("--support", clips, "--out", models).returncode == 0
    server = Server(models)
    rejected = server.infer("m2df", {"frames": query_clips(server)})["rejected"]
    assert rejected[:, 0].tolist() == [True, False, False, False, False]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A function that gives a tiny bundle and the bank of some colours."""
    folder = tmp_path_factory.mktemp("tiny")

    def make(*colours, weight=0.01):
        bundle = Bundle.open(write_bundle(folder / f"bundle-{weight}", support_weight=weight))
        clips = write_support(folder / "-".join(colours), colours)
        return bundle, SupportBank.of(Model(bundle, backend="cpu"), clips)

    return make


def test_tuned_configuration_survives_and_bounds_the_pipeline(tiny, tmp_path):
    write_repository(tmp_path / "models", *tiny("red", "green"), TINY)
    path = tmp_path / "models" / "bank" / "config.pbtxt"
    tuned = path.read_text().replace("max_batch_size: 16", "max_batch_size: 4").replace("count: 1", "count: 3")
    path.write_text(tuned)
    result = write_repository(tmp_path / "models", *tiny("red", "green", "blue"), TINY)
    assert [model.model for model in result.models if model.config_kept] == ["bank"]
    assert path.read_text() == tuned
    assert read_config(tmp_path / "models" / "m2df").max_batch_size == 4
    Server(tmp_path / "models")


def test_another_bundle_of_the_same_shape_versions_what_differs(tiny, tmp_path):
    write_repository(tmp_path / "models", *tiny("red", "green"), TINY)
    bundle, bank = tiny("red", "green", weight=0.5)  # another support graph: other prototypes
    result = write_repository(tmp_path / "models", bundle, bank, TINY)
    assert {m.model: m.version for m in result.models} == {"visual": 1, "query": 1, "bank": 2, "m2df": 2}
    steps = read_config(tmp_path / "models" / "m2df").ensemble_scheduling.step
    assert [(step.model_name, step.model_version) for step in steps] == [("visual", 1), ("bank", 2)]


def test_interrupted_export_leaves_the_served_state(tiny, tmp_path, monkeypatch):
    models = tmp_path / "models"
    write_repository(models, *tiny("red", "green"), TINY)
    before, larger = content(models), tiny("red", "green", "blue")
    real = os.fsync
    for moment in range(1, 10):  # the disk is full at the first, second, ... file
        calls = iter(range(1, 100))

        def full(handle, calls=calls, moment=moment):
            if stat.S_ISREG(os.fstat(handle).st_mode) and next(calls) == moment:
                raise OSError(28, "No space left on device")
            real(handle)

        monkeypatch.setattr(os, "fsync", full)
        try:
            write_repository(models, *larger, TINY)
            break
        except OSError:
            after = content(models)
            assert all(after[path] == before[path] for path in before), moment
            assert Server(models).models["m2df"].config.ensemble_scheduling.step[1].model_version == 1
    assert moment > 2
    assert read_config(models / "m2df").ensemble_scheduling.step[1].model_version == 2
    assert not list(models.rglob("*.m2df-tmp"))
    Server(models)


def test_left_overs_of_a_killed_export_are_cleared(tiny, tmp_path):
    models = tmp_path / "models"
    write_repository(models, *tiny("red", "green"), TINY)
    (models / "bank" / ".2.abc.m2df-tmp").mkdir()
    (models / "bank" / ".2.abc.m2df-tmp" / "model.onnx").write_bytes(b"half")
    Server(models)
    write_repository(models, *tiny("red", "green", "blue"), TINY)
    assert sorted(path.name for path in (models / "bank").iterdir()) == ["1", "2", "config.pbtxt"]


def test_other_shapes_and_other_peoples_models_are_refused(tiny, repository, tmp_path):
    bundle, bank = tiny("red", "green")
    models = shutil.copytree(repository, tmp_path / "models")
    before = content(models)
    with pytest.raises(InputError, match=r"visual: its versions have frames \[-1, 8, 64, 64, 3\]"):
        write_repository(models, bundle, bank, TINY)
    assert content(models) == before
    for name, file in (("visual", "1/model.plan"), ("m2df", "config.pbtxt")):
        foreign = tmp_path / name
        (foreign / name / file).parent.mkdir(parents=True)
        (foreign / name / file).write_text("x")
        with pytest.raises(InputError, match="not written by m2df-export"):
            write_repository(foreign, bundle, bank, TINY)


def test_models_of_others_in_the_repository_stay(tiny, tmp_path):
    (tmp_path / "resnet" / "1").mkdir(parents=True)
    (tmp_path / "resnet" / "1" / "model.onnx").write_bytes(b"x")
    write_repository(tmp_path, *tiny("red", "green"), TINY)
    assert (tmp_path / "resnet" / "1" / "model.onnx").read_bytes() == b"x"


def test_accelerator_stands_in_the_configuration_when_asked_for(tiny, tmp_path):
    target = Target("gpu", "fp32", max_batch=1, tensorrt=True)
    write_repository(tmp_path, *tiny("red", "green"), target)
    config = read_config(tmp_path / "visual")
    assert [a.name for a in config.optimization.execution_accelerators.gpu_execution_accelerator] == ["tensorrt"]
    assert [warm.batch_size for warm in config.model_warmup] == [1]
    assert not read_config(tmp_path / "bank").optimization.execution_accelerators.gpu_execution_accelerator


def test_class_names_of_any_script_come_back(tiny, tmp_path):
    bundle, bank = tiny("red", "green")
    names = ('say "hi"', "挥手 👋")
    renamed = tuple(replace(entry, label=name) for entry, name in zip(bank.classes, names, strict=True))
    write_repository(tmp_path, bundle, replace(bank, classes=renamed), TINY)
    server = Server(tmp_path)
    outputs = server.infer("m2df", {"frames": np.zeros((2, 4, 32, 32, 3), np.uint8)})
    assert outputs["classes"].tolist() == [list(names)] * 2
    assert not outputs["rejected"].any()  # no calibration
    assert server.models["m2df"].labels == {"labels.1.txt": list(names)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "models"], "models: a model repository needs the clips of its bank"),
        (["--out", "models", "--support", "nowhere"], "nowhere: no such folder"),
        (["--out", "file", "--support", "{support}"], "file: is a file"),
        (["--out", "models", "--support", "{support}", "--precision", "fp32"], "no fp32 visual graph"),
        (["--out", "models", "--support", "{support}", "--device", "cpu", "--tensorrt"], "TensorRT runs on GPUs"),
    ],
)
def test_mistakes_get_one_line_and_exit_2(support, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    arguments = [argument.format(support=support) for argument in arguments]
    done = export(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "models").exists()


@pytest.mark.slow
def test_export_writes_the_repository_too(support, tmp_path, first_project, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(first_project / "runs", tmp_path / "runs")
    take_graphs(monkeypatch, first_project / "bundles" / "first")
    missing = call(export_command, "--triton", "models")
    assert (missing.returncode, (tmp_path / "bundles").exists()) == (2, False)
    options = ("--triton", "models", "--support", support, "--no-verify", "--opset", "16", "--json")
    done = call(export_command, *options)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["triton"]
    assert (record["device"], record["precision"]) == ("cpu", "fp32")
    outputs = Server(tmp_path / "models").infer("m2df", {"frames": np.zeros((1, 3, 32, 32, 3), np.uint8)})
    assert outputs["probabilities"].sum() == pytest.approx(1, abs=1e-5)
