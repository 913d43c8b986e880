from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pytest

from m2df_export.check.end_to_end import EPISODES, accuracy, episode_set
from m2df_export.check.parity import Parity, report_json, report_markdown
from m2df_export.graphs.tokenizer_json import build_tokenizer_json
from m2df_runtime.bundle.labels import LabelRules
from m2df_runtime.bundle.tokenizer import Tokenizer
from m2df_runtime.errors import InputError

PROMPTS = [f"a photo of {name}" for name in ("jump", "run", "sit", "wave", "throw")]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_bytes(build_tokenizer_json())


@pytest.fixture(scope="module")
def episodes(model, tokenizer):
    return episode_set(model("m2df").clip, LabelRules(), tokenizer)


@pytest.fixture(scope="module")
def parity(model, exported, tokenizer, episodes):
    return Parity(model("m2df"), exported[1], tokenizer.encode(PROMPTS), episodes)


@pytest.fixture(scope="module")
def reports(parity, exported):
    return {precision: parity.measure(exported[0], precision) for precision in ("fp32", "fp16", "int8")}


def test_every_graph_is_measured_in_every_precision(reports):
    for report in reports.values():
        assert set(report.graphs) == {"visual", "text", "support", "query"}
        assert report.cpu_ms > 0
        assert report.episodes is not None


def test_fp32_agrees_with_pytorch(reports):
    report = reports["fp32"]
    assert not report.failures
    assert max(graph.max_rel for graph in report.graphs.values()) <= 1e-4
    assert report.episodes.top1_agreement == 1.0
    assert report.episodes.accuracy == report.episodes.reference_accuracy


def test_reduced_precisions_are_close_and_not_the_same(reports):
    for precision, cosine in (("fp16", 0.9995), ("int8", 0.995)):
        visual = reports[precision].graphs["visual"]
        assert cosine <= visual.cosine <= 1
        assert visual.max_rel > reports["fp32"].graphs["visual"].max_rel


def test_head_of_int8_is_the_fp32_head(reports):
    for graph in ("support", "query"):
        assert reports["int8"].graphs[graph] == reports["fp32"].graphs[graph]


def test_changed_weight_fails_and_names_the_graph(parity, exported, tmp_path):
    for graph in ("visual", "text", "support", "query"):
        shutil.copy(exported[0] / f"{graph}.onnx", tmp_path)
    changed = onnx.load(tmp_path / "text.onnx")
    weight = next(w for w in changed.graph.initializer if w.name.endswith("text_projection"))
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0] += 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    onnx.save(changed, tmp_path / "text.onnx")
    report = parity.measure(tmp_path, "fp32")
    assert len(report.failures) == 1
    assert report.failures[0].startswith("fp32 text graph: relative error")
    assert not report.summary().passed


def test_episodes_are_seeded_and_clips_are_preprocessed_once(episodes, model, tokenizer):
    again = episode_set(model("m2df").clip, LabelRules(), tokenizer)
    assert np.array_equal(episodes.clips, again.clips)
    assert len(episodes.episodes) == EPISODES
    assert episodes.clips.shape[1:] == (4, 32, 32, 3)
    for episode in episodes.episodes[:20]:
        assert np.array_equal(episodes.labels[episode.support[:, 0]], episode.classes)
        assert np.array_equal(episodes.labels[episode.query[:, 0]], episode.classes)
    perfect = np.tile(np.arange(5), (EPISODES, 1))
    assert accuracy(episodes, perfect) == 1.0
    assert accuracy(episodes, (perfect + 1) % 5) == 0.0


def test_report_is_json_and_readable(reports, episodes):
    data = json.loads(json.dumps(report_json(reports, episodes), allow_nan=False))
    assert data["episodes"]["count"] == EPISODES
    assert set(data["precisions"]["int8"]["graphs"]["visual"]) == {"max_abs", "max_rel", "cosine"}
    text = report_markdown("mine", data)
    assert "| visual | fp16 |" in text
    assert "200 5-way 1-shot episodes" in text


def test_report_of_random_weights_says_so(reports):
    data = report_json(reports, None)
    assert data["episodes"] is None
    assert "random" in report_markdown("mine", data)


def test_folder_with_too_few_clips_is_refused(model, tokenizer, tmp_path):
    (tmp_path / "jump").mkdir()
    (tmp_path / "jump" / "a.mp4").write_bytes(b"not a video")
    with pytest.raises(InputError, match="two classes with 2 readable clips"):
        episode_set(model("m2df").clip, LabelRules(), tokenizer, tmp_path)
