"""What an export measures of itself, and that it tells which graph is wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from m2df_export import pipeline
from m2df_export.check import episodes
from m2df_export.check.parity import Parity
from m2df_export.check.report import parity_markdown, parity_record
from m2df_export.pipeline import ExportOptions, ExportResult, export_bundle
from m2df_runtime.bundle.manifest import SourceInfo
from m2df_runtime.errors import InputError
from m2df_runtime.files import sha256_file
from m2df_runtime.parity import GATES, Gates


@pytest.fixture(scope="module")
def result(model, exported, tmp_path_factory) -> ExportResult:
    """The exported graphs as a bundle, with weights that are said to be trained."""
    trained = replace(model("m2df"), source=SourceInfo(model="test-vit", pretrained="weights"))
    out = tmp_path_factory.mktemp("bundles") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(episodes, "GENERATED_CLASSES", 5)
        patch.setattr(episodes, "GENERATED_CLIPS", 2)
        # Nothing is traced again; and noise may flip more answers on one processor than on another.
        patch.setattr(pipeline, "export_onnx", lambda spec, path, **_: shutil.copy(exported[0] / path.name, path))
        patch.setitem(GATES, "int8", Gates(cosine=0.995))
        return export_bundle(trained, ExportOptions(out, ("fp32", "fp16", "int8")))


@pytest.fixture
def random(model, tmp_path) -> Parity:
    """PyTorch's side of random weights: graphs alone, no episodes."""
    (tmp_path / "walks").mkdir()
    return Parity(model("m2df"), tmp_path / "walks", None, random=True)


def test_every_graph_is_measured_in_every_precision(result):
    assert list(result.reports) == ["fp32", "fp16", "int8"]
    for report in result.reports.values():
        assert set(report.graphs) == {"visual", "text", "support", "query"}
        assert [stage.stage for stage in report.stages][:2] == ["features", "prompts"]
        assert report.cpu_ms > 0
        assert report.episodes is not None


def test_fp32_agrees_with_pytorch(result):
    report = result.reports["fp32"]
    assert not report.problems
    assert max(graph.max_rel for graph in report.graphs.values()) <= 1e-4
    assert report.episodes.agreement == 1.0
    assert report.episodes.accuracy == report.episodes.reference_accuracy


def test_reduced_precisions_are_close_and_not_the_same(result):
    for precision, cosine in (("fp16", 0.9995), ("int8", 0.995)):
        visual = result.reports[precision].graphs["visual"]
        assert cosine <= visual.cosine <= 1
        assert visual.max_rel > result.reports["fp32"].graphs["visual"].max_rel


def test_head_of_int8_is_the_fp32_head(result):
    for graph in ("support", "query"):
        assert result.reports["int8"].graphs[graph] == result.reports["fp32"].graphs[graph]


def test_changed_weight_fails_and_names_the_graph(random, result, tmp_path):
    bundle = Path(shutil.copytree(result.bundle, tmp_path / "bundle"))
    changed = onnx.load(bundle / "text.onnx")
    weight = next(w for w in changed.graph.initializer if w.name.endswith("text_projection"))
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(changed, bundle / "text.onnx")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"]["text"]["files"]["fp32"]["sha256"] = sha256_file(bundle / "text.onnx")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    report = random.measure(bundle, "fp32")
    assert len(report.problems) == 1
    assert report.problems[0].startswith("fp32 text graph: relative error")
    assert not report.summary().passed
    assert report.episodes is None and report.summary().top1_agreement is None


def test_report_is_json_and_readable(result):
    data = json.loads((result.bundle / "parity.json").read_text())
    assert (data["episodes"]["count"], data["episodes"]["clips"], data["episodes"]["classes"]) == (200, 10, 5)
    assert data["reference"].startswith("PyTorch") and data["engine"].startswith("ONNX Runtime")
    assert set(data["precisions"]["int8"]["graphs"]["visual"]) == {"max_abs", "max_rel", "cosine"}
    assert set(data["precisions"]["int8"]["episodes"]) == {"top1_agreement", "accuracy", "reference_accuracy"}
    text = (result.bundle / "parity.md").read_text()
    assert "| visual | fp16 |" in text
    assert "200 5-way 1-shot episodes" in text


def test_report_of_random_weights_says_so(random, result):
    data = parity_record(random.reference, result.reports)
    assert data["episodes"] is None
    assert "random" in parity_markdown("mine", data)


def test_folder_with_too_few_clips_is_refused(model, tmp_path):
    (tmp_path / "data" / "jump").mkdir(parents=True)
    (tmp_path / "data" / "jump" / "a.mp4").write_bytes(b"not a video")
    with pytest.raises(InputError, match="two classes with 2 readable clips"):
        Parity(model("m2df"), tmp_path, tmp_path / "data", random=False)
