from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from m2df_train.model.heads import build_head

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class MatchGraph(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, features, prompts, prototypes):
        match = self.head.match(features, prompts, prototypes)
        return match.logits, match.distances, match.selected, match.tokens


def test_match_exports_with_any_number_of_queries_and_classes():
    torch.manual_seed(0)
    graph = MatchGraph(build_head("m2df", 16, 3, {"heads": 2, "ffn_dim": 24, "mean_weight": 0.5})).eval()
    names = ["features", "prompts", "prototypes"]
    queries, classes = torch.export.Dim("queries"), torch.export.Dim("classes")
    program = torch.onnx.export(
        graph,
        (torch.randn(3, 3, 16), torch.randn(4, 16), torch.randn(4, 2, 3, 16)),
        dynamo=True,
        dynamic_shapes=({0: queries}, {0: classes}, {0: classes}),
        input_names=names,
        verbose=False,
    )
    buffer = io.BytesIO()
    program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    # The deployed graph must not depend on an engine's own log-sum-exp.
    assert not [n for n in program.model.graph if n.op_type == "ReduceLogSumExp"]
    for q, c in ((1, 1), (2, 5), (5, 2)):
        inputs = [torch.randn(q, 3, 16), torch.randn(c, 16), torch.randn(c, 2, 3, 16)]
        with torch.no_grad():
            expected = graph(*inputs)
        found = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
