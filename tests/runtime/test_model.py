"""A bundle's graphs on ONNX Runtime, in the runtime's terms."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image
from test_bundle import edit_manifest, replace_graph
from tiny_bundle import DIM, FRAMES, LOGIT_SCALE, SIZE, VIEWS

from m2df_runtime.backends.model import Model, probe_backend
from m2df_runtime.backends.onnxruntime import BoundGraph
from m2df_runtime.backends.precisions import default_precision
from m2df_runtime.bank.bank import SupportBank
from m2df_runtime.bank.contents import keys_of
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.manifest import PRECISIONS, PrecisionParity
from m2df_runtime.engine_names import Precision
from m2df_runtime.errors import CheckFailed, ClipError, EnvironmentMissing, InputError
from m2df_runtime.match.matcher import Matcher


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Model:
    return Model(Bundle.open(tiny_bundle), backend="cpu", threads=1)


def test_clips_become_features(session: Model) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (2, FRAMES, SIZE, SIZE, 3)).astype(np.uint8)
    features = session.encode_clips(clips)
    half = SIZE // 2
    corner = clips[1, 2, :half, :half].astype(np.float64).mean(axis=(0, 1)) / 255
    assert features.shape == (2, FRAMES, DIM)
    np.testing.assert_allclose(features[1, 2, ::4], corner, rtol=1e-5)


def test_texts_become_embeddings_one_row_each(session: Model) -> None:
    embeddings = session.encode_texts(["jump", "run", "jump"])
    assert embeddings.shape == (3, DIM)
    np.testing.assert_array_equal(embeddings[0], embeddings[2])
    assert not np.array_equal(embeddings[0], embeddings[1])


@pytest.mark.parametrize(("queries", "classes", "shots"), [(1, 1, 1), (3, 5, 2), (1, 40, 5)])
def test_support_and_query_graphs_take_any_way_shot_and_batch(
    session: Model, queries: int, classes: int, shots: int
) -> None:
    rng = np.random.default_rng(1)
    prompts = rng.normal(size=(classes, DIM)).astype(np.float32)
    support = rng.normal(size=(classes, shots, FRAMES, DIM)).astype(np.float32)
    prototypes = np.stack([session.prototypes(support[c], prompts[c : c + 1]) for c in range(classes)])
    scores = session.match(rng.normal(size=(queries, FRAMES, DIM)).astype(np.float32), prompts, prototypes)
    assert prototypes.shape == (classes, VIEWS, FRAMES, DIM)
    assert scores.distances.shape == (queries, VIEWS, classes)
    np.testing.assert_allclose(scores.logits, -LOGIT_SCALE * scores.distances.sum(1), rtol=1e-5)
    np.testing.assert_allclose(scores.selected.sum(1), 1, rtol=1e-5)


def test_backend_that_is_named_is_used_and_described(session: Model) -> None:
    assert session.backend == "cpu"
    assert "CPUExecutionProvider" in session.description
    assert probe_backend("cpu") == session.description


def test_backend_that_is_missing_is_refused(tiny_bundle: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(EnvironmentMissing, match="CUDAExecutionProvider"):
        Model(Bundle.open(tiny_bundle), backend="cuda")
    assert Model(Bundle.open(tiny_bundle), backend="auto").backend == "cpu"


def test_precision_that_is_not_in_the_bundle_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"no fp16 visual graph \(the bundle holds fp32\)"):
        Model(Bundle.open(tiny_bundle), precision="fp16")


def test_graph_that_cannot_take_its_inputs_is_an_error_that_names_it(session: Model) -> None:
    broken = Model(session.bundle, backend="cpu", threads=1)
    broken.prepare("visual", "text")
    broken._graphs["visual"], broken._graphs["text"] = broken._graphs["text"], broken._graphs["visual"]
    with pytest.raises(InputError, match=r"the fp32 visual graph does not run: .+"):
        broken.encode_clips(np.zeros((1, FRAMES, SIZE, SIZE, 3), np.uint8))


def arrays(**changed: np.ndarray) -> dict[str, np.ndarray]:
    """Fitting inputs of every graph: of the support graph `clips` and `prompt`, of the query graph the others."""
    shapes = {"features": (2, FRAMES, DIM), "prompts": (3, DIM), "prototypes": (3, VIEWS, FRAMES, DIM)}
    shapes |= {"clips": (1, FRAMES, DIM), "prompt": (1, DIM)}
    return {**{name: np.ones(shape, np.float32) for name, shape in shapes.items()}, **changed}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"features": np.ones((2, FRAMES + 1, DIM), np.float32)},
            r"features: .*\[Q, T = 4, D = 12\], .*\[2, 5, 12\]",
        ),
        ({"features": np.ones((0, FRAMES, DIM), np.float32)}, r"given float32 \[0, 4, 12\]"),
        ({"features": np.ones((2, FRAMES, DIM))}, r"expected float32 .*, given float64"),
        (
            {"prompts": np.ones((3, DIM - 1), np.float32)},
            r"prompts: .*\[C, D = 12\], given float32 \[3, 11\]",
        ),
        (
            {"prototypes": np.ones((2, VIEWS, FRAMES, DIM), np.float32)},
            r"prototypes: .*\[C = 3, V = 2, T = 4, D",
        ),
        ({"clips": np.ones((1, FRAMES, DIM + 1), np.float32)}, r"features: expected float32 \[K, T = 4, D = 12\]"),
        ({"prompt": np.ones(DIM, np.float32)}, r"prompt: expected float32 \[one = 1, D = 12\], given float32 \[12\]"),
        ({"prompt": [1.0] * DIM}, "prompt: .*, given a list"),
        ({"features": np.full((2, FRAMES, DIM), np.nan, np.float32)}, "features: hold numbers that are not finite"),
        ({"prototypes": np.full((3, VIEWS, FRAMES, DIM), np.inf, np.float32)}, "prototypes: hold numbers that are not"),
        ({"clips": np.full((1, FRAMES, DIM), np.inf, np.float32)}, "features: hold numbers that are not finite"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_in_our_words(session: Model, changed: dict, message: str) -> None:
    given = arrays(**changed)
    with pytest.raises(InputError, match=message):
        session.prototypes(given["clips"], given["prompt"])
        session.match(given["features"], given["prompts"], given["prototypes"])


@pytest.mark.parametrize(
    ("clips", "given"),
    [
        (np.zeros((2, FRAMES, SIZE, SIZE + 1, 3), np.uint8), r"uint8 \[2, 4, 32, 33, 3\]"),
        (np.zeros((FRAMES, SIZE, SIZE, 3), np.uint8), r"uint8 \[4, 32, 32, 3\]"),
        (np.zeros((2, FRAMES, SIZE, SIZE, 3), np.float32), "float32"),
    ],
)
def test_pixels_of_another_size_are_refused(session: Model, clips: np.ndarray, given: str) -> None:
    for encode in (session.encode_clips, session.encode_resident):
        with pytest.raises(InputError, match=rf"clips: expected uint8 \[B, T, height = 32, .*, given {given}"):
            encode(clips)


def test_a_graph_whose_outputs_have_other_shapes_is_refused(bundle_copy: Path) -> None:
    """The file declares what the manifest says, and gives another number of classes."""
    model = onnx.load(bundle_copy / "query.onnx")
    logits = next(node for node in model.graph.node if node.output[0] == "logits")
    logits.output[0] = "all"
    model.graph.node.append(helper.make_node("Concat", ["all", "all"], ["logits"], axis=1))
    replace_graph(bundle_copy, "query", model.SerializeToString())
    given = arrays()
    with pytest.raises(InputError, match=r"the fp32 query graph gives logits \[2, 6\], not \[2, 3\]"):
        Model(Bundle.open(bundle_copy), backend="cpu").match(given["features"], given["prompts"], given["prototypes"])


def with_logarithm(bundle: Path, graph: str, output: str) -> None:
    """Take the logarithm of an output: of zeros it is not finite."""
    model = onnx.load(bundle / f"{graph}.onnx")
    node = next(node for node in model.graph.node if node.output[0] == output)
    node.output[0] = "before"
    model.graph.node.append(helper.make_node("Log", ["before"], [output]))
    replace_graph(bundle, graph, model.SerializeToString())


@pytest.mark.parametrize("on_device", [False, True])
def test_numbers_that_are_not_finite_are_a_failure_of_the_clip_that_gives_them(
    bundle_copy: Path, support_dir: Path, on_device: bool
) -> None:
    """Also where features stay on a device, and are seen in the scores only."""
    bank = SupportBank.of(Model(Bundle.open(bundle_copy), backend="cpu", threads=1), support_dir)
    with_logarithm(bundle_copy, "visual", "features")
    session = Model(Bundle.open(bundle_copy), backend="cpu", threads=1)
    if on_device:
        session.prepare("visual", "query")
        for name in ("visual", "query"):
            session._graphs[name] = BoundGraph(session._graphs[name]._session, "cpu")
    matcher = Matcher(session, replace(bank, keys=keys_of(session.bundle)), reject="off")
    clips = np.full((3, FRAMES, SIZE, SIZE, 3), 9, np.uint8)
    assert len(matcher.predict([*clips])) == 3
    clips[1, 2] = 0
    with pytest.raises(ClipError, match="the fp32 visual graph gives numbers that are not finite") as caught:
        matcher.predict([*clips])
    assert (caught.value.clip, caught.value.hint) == ("clip 2", "leave this clip out")
    each = matcher.predict([*clips], return_errors=True)
    assert [type(answer).__name__ for answer in each] == ["Prediction", "ClipError", "Prediction"]
    assert each[1].clip == "clip 2"
    with pytest.raises(ClipError, match=r"^clip 2: "):
        session.encode_clips(clips)
    black = bundle_copy / "black"
    black.mkdir()
    for number in range(FRAMES):
        Image.new("RGB", (48, 48)).save(black / f"{number}.png")
    with pytest.raises(ClipError) as caught:
        matcher.predict(str(black))
    assert caught.value.clip == str(black)


def test_numbers_that_are_not_finite_name_the_graph_that_gives_them(bundle_copy: Path) -> None:
    for graph, output in (("text", "embeddings"), ("support", "prototypes"), ("query", "logits")):
        with_logarithm(bundle_copy, graph, output)
    edit_manifest(bundle_copy, lambda m: [g["files"].update(fp16=g["files"]["fp32"]) for g in m["graphs"].values()])
    given = arrays(clips=np.zeros((1, FRAMES, DIM), np.float32), prompt=np.zeros((1, DIM), np.float32))
    for precision, hint in (("fp32", "export the bundle again"), ("fp16", "try --precision fp32")):
        session = Model(Bundle.open(bundle_copy), backend="cpu", precision=precision)
        with pytest.raises(CheckFailed, match=f"the {precision} text graph .* not finite for 'jump' .{hint}"):
            session.encode_texts(["jump"])
        with pytest.raises(CheckFailed, match=f"the {precision} support graph .* not finite .{hint}"):
            session.prototypes(given["clips"], given["prompt"])
        with pytest.raises(ClipError, match=f"^q: .*the {precision} query graph gives numbers that are not finite"):
            session.match(given["features"], given["prompts"], given["prototypes"], ["q", "r"])


def test_threads_load_each_graph_once_and_answer_alike(tiny_bundle: Path, support_dir: Path) -> None:
    session = Model(Bundle.open(tiny_bundle), backend="cpu")
    loaded: list[str] = []
    load = session._backend.open
    session._backend.open = lambda bundle, graph, precision: (loaded.append(graph), load(bundle, graph, precision))[1]
    bank = SupportBank.of(Model(session.bundle, backend="cpu"), support_dir)
    matcher = Matcher(session, bank)
    clips = np.random.default_rng(0).integers(0, 256, (8, FRAMES, SIZE, SIZE, 3)).astype(np.uint8)
    start = threading.Barrier(8)

    def answer(clip: np.ndarray) -> tuple[object, bytes]:
        start.wait()
        return matcher.predict(clip).classes, session.encode_texts(["jump"]).tobytes()

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(answer, clips))
    assert sorted(loaded) == ["query", "text", "visual"]
    alone = Matcher(Model(session.bundle, backend="cpu"), bank)
    assert [classes for classes, _ in together] == [alone.predict(clip).classes for clip in clips]
    assert len({text for _, text in together}) == 1


@pytest.mark.parametrize(
    ("backend", "milliseconds", "expected"),
    [
        ("cpu", {"fp32": 5.0, "fp16": 9.0, "int8": 2.0}, "int8"),
        ("cpu", {"fp32": 5.0, "fp16": 9.0}, "fp32"),
        ("cuda", {"fp32": 5.0, "fp16": 9.0, "int8": 2.0}, "fp16"),
        ("cuda", {"fp32": 5.0, "int8": 2.0}, "fp32"),
        ("cpu", {}, "fp32"),
        ("openvino", {"fp32": 100.0, "fp16": 90.0, "int8": 40.0}, "fp32"),
        ("openvino", {"fp16": 90.0, "int8": 40.0}, "fp16"),
        ("openvino", {"fp32": 100.0, "int8": 40.0, "int8-static": 60.0}, "int8-static"),
        ("cpu", {"fp32": 100.0, "int8": 40.0, "int8-static": 60.0}, "int8"),
        ("cpu", {"fp32": 100.0, "int8": 90.0, "int8-static": 60.0}, "int8-static"),
        ("cuda", {"fp32": 100.0, "int8-static": 60.0}, "fp32"),
    ],
)
def test_default_precision_suits_the_backend(
    tiny_bundle: Path, backend: str, milliseconds: dict[Precision, float], expected: Precision
) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    graphs = {
        name: info.model_copy(update={"files": dict.fromkeys(PRECISIONS, info.files["fp32"])})
        for name, info in manifest.graphs.items()
    }
    parity = {p: PrecisionParity(passed=p in milliseconds, cpu_ms=milliseconds.get(p, 1.0)) for p in PRECISIONS}
    manifest = manifest.model_copy(update={"graphs": graphs, "parity": parity})
    assert default_precision(Bundle(tiny_bundle, manifest), backend) == expected


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_engines_leave_nothing_in_the_users_home(
    run_module, support_dir: Path, query_dir: Path, tmp_path: Path, backend: str
) -> None:
    """ONNX Runtime's telemetry would write a device's id and a database of events, OpenVINO's a client's id."""
    if backend == "openvino" and find_spec("openvino") is None:
        pytest.skip("needs OpenVINO: pip install 'm2df[openvino]'")
    cache = tmp_path / "home" / "cache"
    cache.mkdir(parents=True)
    home = {"HOME": str(cache.parent), "XDG_CACHE_HOME": str(cache), "ORT_DISABLE_TELEMETRY": "0"}
    asked = ("--support", support_dir, "--query", query_dir, "--backend", backend, "--json", "--reject", "off")
    done = run_module("m2df_runtime.commands.run", *asked, **home)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in cache.parent.iterdir()] == ["cache"]
    assert [path.name for path in cache.iterdir()] == ["m2df"]


def test_openvino_that_is_not_installed_says_what_to_install(run_module, tmp_path) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('not here')")
    done = run_module("m2df_runtime.commands.run", "--backend", "openvino", PYTHONPATH=str(tmp_path))
    assert done.returncode == 3
    assert "OpenVINO cannot be used: not here (pip install 'm2df[openvino]')" in done.stderr
