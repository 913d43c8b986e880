"""The TensorRT backend's own side: buffers, parts, CUDA graphs, threads, errors.

On a stand-in for TensorRT and the GPU (`fake_tensorrt`), which never counts as having run TensorRT.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import FakeDevice, fake_tensorrt
from tiny_bundle import DIM, FRAMES, SIZE, VIEWS, graph_bytes

from m2df_runtime.backends import DeviceTensor
from m2df_runtime.backends.model import Model
from m2df_runtime.backends.onnxruntime import BoundGraph, OnnxRuntimeBackend
from m2df_runtime.backends.tensorrt import backend
from m2df_runtime.backends.tensorrt import graph as tensorrt_graph
from m2df_runtime.backends.tensorrt.backend import MessageLog, TensorRT, TensorRTBackend
from m2df_runtime.backends.tensorrt.engine_files import EngineIndex, EngineRecord, EngineUnusable, Machine
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.shipped import demo_bundle
from m2df_runtime.errors import EnvironmentMissing, InputError
from m2df_runtime.files import sha256_bytes

ROOT = Path(__file__).parents[2]
LARGEST = {"N": 2 * FRAMES, "Q": 2, "C": 7, "K": 3, "P": 4}


def plan_of(name, profiles=1, smallest=None):
    """What the stand-in calls a plan: the profile's shapes and the ONNX file."""
    from tiny_bundle import SIGNATURES

    least = {**dict.fromkeys(LARGEST, 1), **(smallest or {})}
    shapes = {}
    for tensor, _, shape in SIGNATURES[name][0]:
        if not any(isinstance(axis, str) for axis in shape):
            continue  # has no place in a profile
        shapes[tensor] = [[sizes[a] if isinstance(a, str) else a for a in shape] for sizes in (least, least, LARGEST)]
    return json.dumps([shapes] * profiles).encode() + b"\n" + graph_bytes(name)


def write_engines(
    bundle,
    version="11.4.0.106",
    capability=(9, 0),
    profiles=1,
    graphs=("visual", "text", "support", "query"),
    smallest=None,
):
    records = {}
    index = EngineIndex(Machine("NVIDIA Fake", capability, version), "fp32")
    folder = bundle.path / "engines" / index.folder_name
    folder.mkdir(parents=True, exist_ok=True)
    for name in graphs:
        plan = plan_of(name, profiles, smallest)
        (folder / f"{name}.engine").write_bytes(plan)
        source = bundle.graph_file(name, "fp32").sha256
        records[name] = EngineRecord(sha256_bytes(plan), len(plan), source, {}, 1.0)
    EngineIndex(index.machine, "fp32", engines=records).write(folder)
    return folder


@pytest.fixture
def tensorrt(monkeypatch):
    """Install a version of the stand-in."""

    def install(version="11.4.0.106", **options):
        module, device = fake_tensorrt(version, **options), FakeDevice()
        found = TensorRT(module, device, MessageLog(module), Machine(device.name, device.capability, version))
        monkeypatch.setattr(backend, "open_tensorrt", lambda: found)
        monkeypatch.setattr("m2df_runtime.backends.model.importlib.util.find_spec", lambda name: True)
        recorded = []

        def capture(stream, enqueue):
            recorded.append(stream)
            return enqueue  # a launch computes what was recorded

        monkeypatch.setattr(tensorrt_graph, "capture", capture)
        return module, device, recorded

    return install


@pytest.fixture
def bundle(bundle_copy):
    found = Bundle.open(bundle_copy)
    write_engines(found)
    return found


def clips(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, FRAMES, SIZE, SIZE, 3)).astype(np.uint8)


def classes(count):
    rng = np.random.default_rng(1)
    prompts = rng.normal(size=(count, DIM)).astype(np.float32)
    return prompts, rng.normal(size=(count, VIEWS, FRAMES, DIM)).astype(np.float32)


def test_more_clips_than_the_profile_run_in_parts(tensorrt, bundle):
    tensorrt()
    session, reference = Model(bundle, backend="tensorrt"), Model(bundle, backend="cpu")
    pixels = clips(5)  # the profile holds 2
    features = session.encode_clips(pixels)
    np.testing.assert_array_equal(features, reference.encode_clips(pixels))
    got, expected = session.match(features, *classes(7)), reference.match(features, *classes(7))
    np.testing.assert_allclose(got.logits, expected.logits, rtol=1e-5)
    np.testing.assert_allclose(got.distances, expected.distances, atol=1e-6)
    resident = session.encode_resident(pixels)
    assert isinstance(resident, np.ndarray)  # several runs share one buffer, so they come home
    np.testing.assert_array_equal(resident, features)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7, 9])
def test_rest_smaller_than_the_profile_is_run_with_rows_of_the_part_before(tensorrt, bundle, monkeypatch, count):
    """The profile takes 2 to 3 clips, so 4 are 3 and then the last 2, of which one was there already."""
    tensorrt()
    monkeypatch.setitem(LARGEST, "N", 3 * FRAMES)
    write_engines(bundle, smallest={"N": 2 * FRAMES})
    session, reference = Model(bundle, backend="tensorrt"), Model(bundle, backend="cpu")
    pixels = clips(count)
    np.testing.assert_array_equal(session.encode_clips(pixels), reference.encode_clips(pixels))
    with pytest.raises(InputError, match=r"N = 4, the engine was built for 8 to 12 \(.* --batch MIN,OPT,MAX"):
        session.encode_clips(clips(1))


def test_axis_that_cannot_be_split_is_an_error_that_says_how_to_build(tensorrt, bundle):
    tensorrt()
    session = Model(bundle, backend="tensorrt")
    features = np.zeros((1, FRAMES, DIM), np.float32)
    with pytest.raises(InputError, match=r"C = 8, the engine was built for 1 to 7 \(.*--batch C=MIN,OPT,MAX"):
        session.match(features, *classes(8))
    with pytest.raises(InputError, match="features: expected float32"):
        session.match(features[:, :, 1:], *classes(2))


def test_features_and_prototypes_never_visit_the_host(tensorrt, bundle):
    _, device, _ = tensorrt()
    session, reference = Model(bundle, backend="tensorrt"), Model(bundle, backend="cpu")
    prompts, prototypes = (session.resident(array) for array in classes(3))
    pixels = clips(2)
    device.uploads.clear(), device.downloads.clear()
    features = session.encode_resident(pixels)
    assert isinstance(features, DeviceTensor) and features.shape == (2, FRAMES, DIM)
    scores = session.match(features, prompts, prototypes)
    assert device.uploads == [pixels.nbytes]
    scores_and_tokens = (2 * 3, 2 * VIEWS * 3, 2 * 3, 2 * VIEWS * FRAMES * DIM)  # logits, distances, selected, tokens
    assert device.downloads == [4 * count for count in scores_and_tokens]
    expected = reference.match(reference.encode_clips(pixels), *classes(3))
    np.testing.assert_allclose(scores.logits, expected.logits, rtol=1e-5)


def test_results_are_the_callers_own(tensorrt, bundle):
    tensorrt()
    session = Model(bundle, backend="tensorrt")
    first = session.encode_clips(clips(1, seed=1))
    kept = first.copy()
    session.encode_clips(clips(1, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_shape_that_keeps_coming_becomes_a_cuda_graph_with_its_own_context(tensorrt, bundle):
    module, _, recorded = tensorrt()
    session, reference = Model(bundle, backend="tensorrt"), Model(bundle, backend="cpu")
    visual = module.engines[0]
    for seed in range(6):
        for count in (1, 2):
            pixels = clips(count, seed)
            np.testing.assert_array_equal(session.encode_clips(pixels), reference.encode_clips(pixels))
    assert len(recorded) == 2  # one per shape
    eager, first, second = visual._contexts
    assert (eager._runs, first._runs, second._runs) == (6, 4, 4)  # warm-up, then three launches of each


def test_new_class_sets_are_recorded_however_many_came_before(tensorrt, bundle):
    """Every set is resident at addresses of its own; the one that was not used for longest makes room."""
    module, _, recorded = tensorrt()
    session, reference = Model(bundle, backend="tensorrt"), Model(bundle, backend="cpu")
    features = reference.encode_clips(clips(1))
    kept = []
    for size in range(1, 8):
        prompts, prototypes = classes(size)
        kept.append((session.resident(prompts), session.resident(prototypes)))
        expected = reference.match(features, prompts, prototypes)
        for _ in range(5):
            np.testing.assert_allclose(session.match(features, *kept[-1]).logits, expected.logits, rtol=1e-5)
        assert len(recorded) == size
    query = module.engines[1]
    assert sum(context._runs for context in query._contexts) == 7 * (5 + 1)  # one warm-up each


def test_full_gpu_costs_the_cuda_graph_and_not_the_answer(tensorrt, bundle):
    module, _, recorded = tensorrt()
    session, reference = Model(bundle, backend="tensorrt"), Model(bundle, backend="cpu")
    session.encode_clips(clips(1))
    module.engines[0]._full = True
    for seed in range(5):
        np.testing.assert_array_equal(session.encode_clips(clips(1, seed)), reference.encode_clips(clips(1, seed)))
    assert recorded == []


@pytest.mark.parametrize("call", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_call_that_tensorrt_refuses_is_an_error_with_its_reason(tensorrt, bundle, call):
    """These return False and do not raise."""
    module, _, _ = tensorrt()
    session = Model(bundle, backend="tensorrt")
    module.engines[0]._refused = call
    with pytest.raises(InputError, match=f"visual.*{call} says no"):
        session.encode_clips(clips(1))


def test_tensor_of_another_type_on_the_device_is_refused(tensorrt, bundle):
    """Its bytes would be read as another type's."""
    tensorrt()
    session = Model(bundle, backend="tensorrt")
    prompts, prototypes = classes(2)
    kept = session.resident(prompts.astype(np.float64)), session.resident(prototypes)
    with pytest.raises(InputError, match=r"prompts: expected float32 .*, given float64"):
        session.match(np.zeros((1, FRAMES, DIM), np.float32), *kept)


def test_cuda_graphs_can_be_turned_off(tensorrt, bundle, monkeypatch):
    module, _, recorded = tensorrt()
    monkeypatch.setenv("M2DF_CUDA_GRAPHS", "0")
    session = Model(bundle, backend="tensorrt")
    for seed in range(6):
        session.encode_clips(clips(1, seed))
    assert recorded == [] and len(module.engines[0]._contexts) == 1


def test_graph_that_cannot_be_recorded_runs_on(tensorrt, bundle, monkeypatch):
    tensorrt()
    monkeypatch.setattr(tensorrt_graph, "capture", lambda stream, enqueue: None)
    session, reference = Model(bundle, backend="tensorrt"), Model(bundle, backend="cpu")
    for seed in range(6):
        np.testing.assert_array_equal(session.encode_clips(clips(1, seed)), reference.encode_clips(clips(1, seed)))


def test_threads_have_streams_and_contexts_of_their_own(tensorrt, bundle):
    module, device, _ = tensorrt()
    session, reference = Model(bundle, backend="tensorrt"), Model(bundle, backend="cpu")
    wrong = []

    def work(seed):
        for _ in range(5):
            pixels = clips(1, seed)
            if not np.array_equal(session.encode_clips(pixels), reference.encode_clips(pixels)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and device.streams == 3
    assert len(module.engines[0]._contexts) == 6  # an eager and a recorded one each


def test_version_8_5_gives_the_recorded_context_the_second_profile(tensorrt, bundle_copy):
    """There is no third profile: another shape that keeps coming takes the place of the first."""
    module, _, recorded = tensorrt("8.5.3.1")
    bundle = Bundle.open(bundle_copy)
    write_engines(bundle, "8.5.3.1", profiles=2)
    session, reference = Model(bundle, backend="tensorrt"), Model(bundle, backend="cpu")
    for count in (1, 2):
        for seed in range(5):
            np.testing.assert_array_equal(
                session.encode_clips(clips(count, seed)), reference.encode_clips(clips(count, seed))
            )
    assert [context._profile for context in module.engines[0]._contexts] == [0, 1, 1]
    assert len(recorded) == 2


def test_version_8_5_serves_a_thread_when_the_one_before_it_has_ended(tensorrt, bundle_copy):
    """Two profiles make two threads at once, each without a CUDA graph; a third has to wait for one to end."""
    tensorrt("8.5.3.1")
    bundle = Bundle.open(bundle_copy)
    write_engines(bundle, "8.5.3.1", profiles=2)
    session = Model(bundle, backend="tensorrt")
    expected = session.encode_clips(clips(1))
    found = []
    for _ in range(3):
        thread = threading.Thread(target=lambda: found.append(session.encode_clips(clips(1))))
        thread.start()
        thread.join()
    assert len(found) == 3
    for features in found:
        np.testing.assert_array_equal(features, expected)


def test_auto_says_why_it_does_not_take_stale_engines(tensorrt, bundle_copy, caplog):
    tensorrt()
    bundle = Bundle.open(bundle_copy)
    write_engines(bundle, capability=(8, 0))
    with caplog.at_level(logging.WARNING, "m2df_runtime"):
        session = Model(bundle, backend="auto", threads=1)
    assert session.backend == "cpu"
    assert "not on TensorRT" in caplog.text and "built for sm80, this GPU is sm90" in caplog.text
    with pytest.raises(EnvironmentMissing, match="m2df-export engines --bundle"):
        Model(bundle, backend="tensorrt")


@pytest.mark.parametrize("damage", ["content", "plan", "other graph", "index", "missing"])
def test_damaged_engine_is_never_loaded(tensorrt, bundle_copy, caplog, damage):
    tensorrt()
    bundle = Bundle.open(bundle_copy)
    folder = write_engines(bundle)
    path = folder / "visual.engine"
    words = {"content": "does not match its hash", "plan": "stdVersionRead", "other graph": "has tensors",
             "index": "cannot be read", "missing": "No such file"}[damage]  # fmt: skip
    data = {"content": path.read_bytes() + b"x", "plan": b"not a plan", "other graph": plan_of("text")}.get(damage)
    if damage == "index":
        (folder / "index.json").write_text('{"schema_version": 1, "machine": []}')
    elif damage == "missing":
        path.unlink()
    elif data is not None:
        path.write_bytes(data)
        if damage != "content":
            index = json.loads((folder / "index.json").read_text())
            index["engines"]["visual"].update(sha256=sha256_bytes(data), bytes=len(data))
            (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(EngineUnusable, match=words):
        Model(bundle, backend="tensorrt")
    assert Model(bundle, backend="auto", threads=1).backend == "cpu"
    assert words in caplog.text


def test_version_compatible_engine_needs_consent_to_run_its_host_code(tensorrt, bundle, monkeypatch):
    tensorrt()
    info = bundle.manifest.graphs["visual"]
    with pytest.raises(EngineUnusable, match="M2DF_ENGINE_HOST_CODE=1"):
        TensorRTBackend().load(plan_of("visual"), info, "x", host_code=True)
    monkeypatch.setenv("M2DF_ENGINE_HOST_CODE", "1")
    allowed = TensorRTBackend()
    allowed.load(plan_of("visual"), info, "x", host_code=True)
    assert allowed._runtime.engine_host_code_allowed is True


def test_without_a_driver_runtime_fails_with_the_reason(tensorrt, bundle):
    tensorrt(driver=False)
    with pytest.raises(EnvironmentMissing, match=r"cannot use this machine's NVIDIA driver: CUDA init.* 35") as caught:
        Model(bundle, backend="tensorrt")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise ImportError('libnvinfer.so.11: cannot open shared object file')", "libnvinfer.so.11"),
        ("raise OSError('libcudart.so.13 is missing')", "libcudart.so.13"),
        ("__version__ = '8.4.3.1'", "TensorRT 8.4.3.1 is too old"),
        ("__version__ = '11.4.0.106'", "cuda"),
    ],
)
def test_command_ends_with_3_and_one_line(run_module, tmp_path, source, words):
    (tmp_path / "tensorrt.py").write_text(source)
    done = run_module(
        "m2df_runtime.commands.run", "--backend", "tensorrt", PYTHONPATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path)
    )
    if done.returncode == 3:
        assert len(done.stderr.splitlines()) == 1 and words in done.stderr
        assert "Traceback" not in done.stderr
    else:  # a machine with a driver gets past the last source
        assert "11.4.0.106" in source


def test_backend_needs_no_opencv_pydantic_or_onnxruntime():
    """TensorRT 8.5 runs on numpy 1.23, where OpenCV 5 does not import."""
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('cv2', 'pydantic', 'onnxruntime', 'onnx', 'torch', 'PIL')));"
        "import m2df_runtime.backends.tensorrt.backend, m2df_export.tensorrt.build, m2df_export.tensorrt.network"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


WITHOUT_OPENCV = """
import sys
sys.modules["cv2"] = None  # importing it fails, as it does on the numpy that TensorRT 8.5 needs
import numpy as np
import m2df_runtime.backends.tensorrt.backend, m2df_runtime.bank.bank
import m2df_runtime.commands.run, m2df_runtime.match.matcher
from m2df_runtime.bundle.bundle import Bundle
from m2df_runtime.bundle.shipped import demo_bundle
from m2df_runtime.backends.model import Model

session = Model(Bundle.open(demo_bundle()), backend="cpu", threads=1)
clip = session.bundle.manifest.clip
size = (3, clip.frames, clip.size, clip.size, 3)
features = session.encode_clips(np.random.default_rng(0).integers(0, 256, size).astype(np.uint8))
prompts = session.encode_texts(["run", "jump"])
prototypes = np.stack([session.prototypes(features[i : i + 1], prompts[i : i + 1]) for i in range(2)])
print(session.match(features, prompts, prototypes).logits.argmax(axis=1).tolist()[:2])
"""


def test_bundle_runs_on_arrays_without_opencv():
    done = subprocess.run([sys.executable, "-c", WITHOUT_OPENCV], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[0, 1]\n"), done.stderr  # a clip is most like itself


def test_frames_go_from_8_bits_straight_to_floats():
    """TensorRT 8.5 takes uint8 as a network's input for a conversion to floats alone (`DataType::kUINT8`)."""
    import onnx

    bundle = Bundle.open(demo_bundle())
    model = onnx.load_from_string(bundle.read(bundle.graph_file("visual", "fp16")))
    (first,) = [node for node in model.graph.node if "frames" in node.input]
    assert first.op_type == "Cast"
    assert first.attribute[0].i in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def test_io_binding_hands_tensors_on_without_a_copy(tiny_bundle):
    """The CUDA path's binding code, on ONNX Runtime's CPU device, where addresses are host memory."""
    bundle, backend_ = Bundle.open(tiny_bundle), OnnxRuntimeBackend("cpu", threads=1)
    plain = {name: backend_.open(bundle, name, "fp32") for name in ("visual", "query")}
    bound = {name: BoundGraph(graph._session, "cpu") for name, graph in plain.items()}
    frames = {"frames": clips(2).reshape(-1, SIZE, SIZE, 3)}
    features = bound["visual"].run_resident(frames)["features"]
    assert isinstance(features, DeviceTensor) and features.shape == (2 * FRAMES, DIM)
    prompts, prototypes = classes(3)
    rest = {"prompts": prompts, "prototypes": prototypes}
    got = bound["query"].run({"features": features.reshape(2, FRAMES, -1), **rest})
    host = plain["visual"].run(frames)["features"].reshape(2, FRAMES, DIM)
    expected = plain["query"].run({"features": host, **rest})
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5)


def test_device_tensor_views():
    tensor = DeviceTensor(1000, (6, 4), np.dtype(np.float32), None)
    assert tensor.reshape(2, 3, -1).shape == (2, 3, 4) and len(tensor) == 6 and tensor.nbytes == 96
    assert (tensor[2:5].address, tensor[2:5].shape) == (1000 + 2 * 16, (3, 4))
    with pytest.raises(ValueError, match="cannot reshape"):
        tensor.reshape(5, -1)
