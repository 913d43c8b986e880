"""What a query graph works out of the classes alone is worked out once for many classes, and nothing else changes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from m2df_runtime.backends.model import Model
from m2df_runtime.backends.onnxruntime import OnnxRuntimeBackend
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.onnx_split import split_onnx
from m2df_runtime.bundle.shipped import demo_bundle
from m2df_runtime.errors import ClipError
from m2df_runtime.match.matcher import Matcher

CLASSES = 600  # more than what is worked out anew for every query
FIXED = ("b", "c")
NODES = st.lists(
    st.tuples(st.sampled_from(["Add", "Mul", "Neg", "ReduceSum", "ReduceSum"]), st.integers(0, 99), st.integers(0, 99)),
    min_size=3,
    max_size=14,
)


def graph_of(steps: list[tuple[str, int, int]]) -> tuple[bytes, dict[str, tuple[str, ...]]]:
    """A graph of a, b and c [2, 3] whose outputs are its last two values, and what each value is made of."""
    values, nodes, made = ["a", *FIXED], [], {}
    for number, (operator, *picks) in enumerate(steps):
        known = values[1:] if 2 * number < len(steps) else values  # of a graph's beginning nothing depends on a
        read = [known[pick % len(known)] for pick in picks][: 2 if operator in ("Add", "Mul") else 1]
        values.append(f"v{number}")
        made[values[-1]] = (operator, *read)
        axes = {"keepdims": 1} if operator == "ReduceSum" else {}
        nodes.append(helper.make_node(operator, [*read, *["last"] * len(axes)], [values[-1]], **axes))
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in values[:3]]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in values[3:][-2:]]
    last = [numpy_helper.from_array(np.array([1]), "last")]
    model = helper.make_model(
        helper.make_graph(nodes, "steps", inputs, outputs, last), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 9
    return model.SerializeToString(), made


def expected_tensors(made: dict[str, tuple[str, ...]], outputs: Collection[str]) -> set[str]:
    """Values that come of fixed inputs through a sum and are read beside something else; by recursion."""

    def fixed(name: str) -> bool:
        return name in FIXED if name not in made else all(map(fixed, made[name][1:]))

    def summed(name: str) -> bool:
        return name in made and (made[name][0] == "ReduceSum" or any(map(summed, made[name][1:])))

    read = {name for value, (_, *names) in made.items() if not fixed(value) for name in names}
    return {name for name in read if fixed(name) and summed(name)} - set(outputs)


@given(NODES)
@settings(max_examples=60)
def test_a_split_graph_gives_what_the_whole_gives(steps):
    model, made = graph_of(steps)
    outputs = list(made)[-2:]
    split, expected = split_onnx(model, FIXED), expected_tensors(made, outputs)
    assert set(split.derived if split else ()) == expected
    if split is None:
        return
    numbers = np.random.default_rng(len(steps)).integers(-3, 4, (3, 2, 3)).astype(np.float32)
    arrays = dict(zip("abc", numbers, strict=True))
    load = OnnxRuntimeBackend("cpu", 1).load
    derived = load(split.first, "first").run({name: arrays[name] for name in FIXED})
    rest = load(split.rest(derived), "rest").run({**arrays, **derived})
    whole = load(model, "whole").run(arrays)
    assert derived.keys() == expected and rest.keys() == whole.keys() == set(outputs)
    for name, value in whole.items():
        np.testing.assert_array_equal(rest[name], value)


def test_a_graph_with_a_branch_is_left_whole():
    """The body of a branch reads values that its node does not list."""
    value = helper.make_tensor_value_info
    body = helper.make_graph([helper.make_node("Mul", ["a", "total"], ["y"])], "body", [], [value("y", 1, None)])
    nodes = [
        helper.make_node("ReduceSum", ["b"], ["total"]),
        helper.make_node("If", ["yes"], ["out"], then_branch=body, else_branch=body),
    ]
    inputs = [value("a", TensorProto.FLOAT, [2]), value("b", TensorProto.FLOAT, [2])]
    yes = [numpy_helper.from_array(np.array(True), "yes")]
    graph = helper.make_graph(nodes, "branch", inputs, [value("out", TensorProto.FLOAT, None)], yes)
    assert split_onnx(helper.make_model(graph).SerializeToString(), ["b"]) is None


def random_classes(model: Model, count: int, queries: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, prompts and prototypes that fit a model."""
    manifest, rng = model.bundle.manifest, np.random.default_rng(count)
    frames, dim = manifest.clip.frames, manifest.dim
    shapes = (queries, frames, dim), (count, dim), (count, manifest.views, frames, dim)
    return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)


@pytest.mark.parametrize("shipped", [True, False])
def test_scores_do_not_depend_on_where_the_classes_were_worked_out(shipped: bool, tiny_bundle: Path) -> None:
    model = Model(Bundle.open(demo_bundle() if shipped else tiny_bundle), backend="cpu", threads=1)
    features, prompts, prototypes = random_classes(model, CLASSES, 2)
    derived = model.derived(prompts, prototypes)
    assert derived and sum(tensor.nbytes for tensor in derived.values()) < prototypes.nbytes / 2
    assert not model.derived(prompts[:5], prototypes[:5])
    expected = model.match(features, prompts, prototypes)
    scores = model.match(features, prompts, prototypes, derived=derived)
    for each in fields(scores):
        np.testing.assert_array_equal(getattr(scores, each.name), getattr(expected, each.name))


def test_answers_among_many_classes_follow_from_the_graphs(
    tiny_bundle: Path, support_dir: Path, query_dir: Path
) -> None:
    model = Model(Bundle.open(tiny_bundle), backend="cpu", threads=1)
    few = SupportBank.of(model, support_dir)
    noise = 0.1 * np.random.default_rng(0).standard_normal((CLASSES, *few.prototypes.shape[1:]), dtype=np.float32)
    classes = (few.classes[number % len(few.classes)] for number in range(CLASSES))
    many = replace(
        few,
        classes=tuple(
            replace(each, label=f"{each.label} {number}", prototypes=each.prototypes + noise[number])
            for number, each in enumerate(classes)
        ),
    )
    matcher = Matcher(model, many)
    clips = sorted(map(str, query_dir.rglob("*.mp4")))[:2]
    for answer in matcher.predict(clips):
        expected = model.match(answer.features[None], many.prompts, many.prototypes)
        order = np.argsort(-expected.logits[0], kind="stable")
        assert [score.label for score in answer.classes] == [many.labels[number] for number in order]
        distances = [score.distance for score in answer.classes]
        np.testing.assert_allclose(distances, expected.distances[0].sum(axis=0)[order], atol=1e-5)
    matcher.swap(few)
    assert [len(answer.classes) for answer in matcher.predict(clips)] == [len(few.classes)] * len(clips)


def test_many_queries_are_matched_in_parts(tiny_bundle: Path) -> None:
    model = Model(Bundle.open(tiny_bundle), backend="cpu", threads=1)
    features, prompts, prototypes = random_classes(model, CLASSES, 300)
    scores = model.match(features, prompts, prototypes)
    last = model.match(features[290:], prompts, prototypes)
    for each in fields(scores):
        whole = getattr(scores, each.name)
        assert len(whole) == 300
        np.testing.assert_allclose(whole[290:], getattr(last, each.name), rtol=1e-5, atol=1e-6)
    features[291] = 3e38  # its mean is not finite
    with pytest.raises(ClipError, match=r"^clip 292: "):
        model.match(features, prompts, prototypes)
