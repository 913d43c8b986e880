"""A stand-in for `tensorrt` and for the GPU, to test our side of them: errors, keys, profiles, buffers.

It never counts as having run TensorRT. "Device memory" is host memory, a "plan" is the ONNX file it was
built from, and ONNX Runtime computes. What is real is the API of each version: every name read from an
object is looked up in tensorrt_api.json, which was read with `dir()` from NVIDIA's own bindings, and one
that the version does not have raises AttributeError, as it would there.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime

TABLE = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())
VERSIONS = tuple(TABLE["versions"])
ENUMS = (
    "BuilderFlag", "DataType", "HardwareCompatibilityLevel", "LayerInformationFormat", "LayerType", "MemoryPoolType",
    "NetworkDefinitionCreationFlag", "PreviewFeature", "ProfilingVerbosity", "TacticSource",
)  # fmt: skip
TYPES = {"tensor(uint8)": "UINT8", "tensor(int32)": "INT32", "tensor(float)": "FLOAT"}


def exists(name: str, version: str) -> bool:
    """Whether a version has `Class` or `Class.name`."""
    row = TABLE["names"].get(name)
    return row is not None and row[VERSIONS.index(version)] == "y"


def fake_tensorrt(version: str, *, driver: bool = True, refuses: str | None = None):
    """The module of a version.

    Args:
        version: One of `VERSIONS`.
        driver: False: `Runtime` and `Builder` fail as they do without an NVIDIA driver.
        refuses: A word in an ONNX graph's name that makes the builder fail.

    Returns:
        The module; its `used` has every `Class.name` that was read or set so far.
    """
    used: set[str] = set()

    class Watched(enum.EnumMeta):
        def __getattribute__(cls, name):
            value = super().__getattribute__(name)
            if name.isupper():
                used.add(f"{cls.__name__}.{name}")
            return value

    class Members(enum.IntEnum, metaclass=Watched):
        pass

    class Checked:
        api = ""

        def __getattribute__(self, name):
            if not name.startswith("_") and name != "api":
                full = f"{type(self).api}.{name}"
                if not exists(full, version):
                    raise AttributeError(f"TensorRT {version} has no {full}")
                used.add(full)
            return object.__getattribute__(self, name)

        def __setattr__(self, name, value):
            if not name.startswith("_"):
                full = f"{type(self).api}.{name}"
                if not exists(full, version):
                    raise AttributeError(f"TensorRT {version} has no {full}")
                used.add(full)
            object.__setattr__(self, name, value)

    def make(logger):
        if not driver:
            logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    class Severity(enum.Enum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class Logger:
        def __init__(self):
            pass

    class Memory(bytes):
        pass

    class Tensor(Checked):
        api = "ITensor"

        def __init__(self, kind):
            self._kind = kind

        dtype = property(lambda self: getattr(module.DataType, self._kind))

    class Layer(Checked):
        api = "ILayer"
        num_outputs = 1
        precision = None

        def __init__(self, operator, kind):
            self._operator, self._kind, self._types = operator, kind, {}

        type = property(lambda self: getattr(module.LayerType, self._operator))

        def get_output(self, index):
            return Tensor(self._kind)

        def set_output_type(self, index, kind):
            self._types[index] = kind

    class Network(Checked):
        api = "INetworkDefinition"

        def __init__(self, flags):
            self._flags, self._model = flags, b""
            self._layers = [Layer("CONSTANT", "FLOAT"), Layer("SOFTMAX", "FLOAT"), Layer("MATRIX_MULTIPLY", "HALF")]

        num_layers = property(lambda self: len(self._layers))

        def get_layer(self, index):
            return self._layers[index]

    class Problem(Checked):
        api = "ParserError"

        def __init__(self, text):
            self._text = text

        def desc(self):
            return self._text

    class Parser(Checked):
        api = "OnnxParser"
        num_errors = 1

        def __init__(self, network, logger):
            self._network = network

        def parse(self, model):
            self._network._model = bytes(model)
            return b"unreadable" not in model

        def get_error(self, index):
            return Problem("no importer registered for op: Unreadable")

    class Profile(Checked):
        api = "IOptimizationProfile"

        def __init__(self):
            self._shapes = {}

        def set_shape(self, name, low, best, high):
            self._shapes[name] = (low, best, high)

    class Cache(Checked):
        api = "ITimingCache"

        def __init__(self, data):
            self._data = data

        def serialize(self):
            return Memory(self._data or b"timings")

    class Config(Checked):
        api = "IBuilderConfig"
        profiling_verbosity = None
        hardware_compatibility_level = None

        def __init__(self):
            self._flags, self._profiles, self._cache, self._sources, self._pools = {"TF32"}, [], None, None, {}
            self._preview = set()

        def set_flag(self, flag):
            self._flags.add(flag.name)

        def clear_flag(self, flag):
            self._flags.discard(flag.name)

        def set_memory_pool_limit(self, pool, size):
            self._pools[pool.name] = size

        def set_preview_feature(self, feature, on):
            self._preview.add(feature.name)

        def set_tactic_sources(self, mask):
            self._sources = mask

        def add_optimization_profile(self, profile):
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, data):
            return Cache(bytes(data))

        def set_timing_cache(self, cache, ignore_mismatch):
            self._cache = cache
            return True

        def get_timing_cache(self):
            return self._cache

    class Builder(Checked):
        api = "Builder"

        def __init__(self, logger):
            make(logger)
            self._logger = logger

        def create_network(self, flags):
            return Network(flags)

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            return Profile()

        def build_serialized_network(self, network, config):
            if refuses and refuses.encode() in network._model:
                self._logger.log(Severity.ERROR, "could not find any implementation for node")
                return None
            module.built.append((network, config))
            shapes = [profile._shapes for profile in config._profiles]
            return Memory(json.dumps(shapes).encode() + b"\n" + network._model)

    class Inspector(Checked):
        api = "EngineInspector"

        def get_engine_information(self, form):
            return '{"Layers": []}'

    class Context(Checked):
        api = "IExecutionContext"

        def __init__(self, engine):
            self._engine, self._shapes, self._addresses, self._profile = engine, {}, {}, 0
            self._runs = 0

        def set_optimization_profile_async(self, index, stream):
            self._profile = index
            return True

        def _refuses(self, call):
            if self._engine._refused == call:
                self._engine._logger.log(Severity.ERROR, f"{call} says no")
                return True
            return False

        def set_input_shape(self, name, shape):
            low, _, high = self._engine._profiles[self._profile].get(name, [shape] * 3)
            fits = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
            self._shapes[name] = tuple(shape)
            return fits and not self._refuses("set_input_shape")

        def set_tensor_address(self, name, address):
            assert type(address) is int
            self._addresses[name] = address
            return not self._refuses("set_tensor_address")

        def get_tensor_shape(self, name):
            return self._results[name].shape

        def execute_async_v3(self, stream):
            assert type(stream) is int
            if self._refuses("execute_async_v3"):
                return False
            recording = getattr(sys.modules.get("fake_cuda"), "recording", None)
            if recording is None:
                self._compute()
            else:
                recording.append(self._compute)
            return True

        def _compute(self):
            session = self._engine._session
            inputs = {
                item.name: host_array(self._addresses[item.name], self._shapes[item.name], DTYPES[item.type])
                for item in session.get_inputs()
            }
            names = [item.name for item in session.get_outputs()]
            self._results = dict(zip(names, session.run(names, inputs), strict=True))
            for name, value in self._results.items():
                host_array(self._addresses[name], value.shape, value.dtype)[...] = value
            self._runs += 1

    class Engine(Checked):
        api = "ICudaEngine"

        def __init__(self, plan, logger):
            self._logger, self._refused, self._full = logger, None, False
            head, _, model = bytes(plan).partition(b"\n")
            self._profiles = json.loads(head)
            self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            self._io = [*self._session.get_inputs(), *self._session.get_outputs()]
            self._contexts = []

        num_io_tensors = property(lambda self: len(self._io))
        num_optimization_profiles = property(lambda self: len(self._profiles))

        def get_tensor_name(self, index):
            return self._io[index].name

        def get_tensor_dtype(self, name):
            kind = next(item.type for item in self._io if item.name == name)
            return getattr(module.DataType, TYPES[kind])

        def get_tensor_profile_shape(self, name, profile):
            return self._profiles[profile][name]

        def create_execution_context(self):
            if self._full:
                return None
            self._contexts.append(Context(self))
            return self._contexts[-1]

        def create_engine_inspector(self):
            return Inspector()

    class Runtime(Checked):
        api = "Runtime"
        engine_host_code_allowed = False

        def __init__(self, logger):
            make(logger)
            self._logger = logger

        def deserialize_cuda_engine(self, plan):
            try:
                engine = Engine(plan, self._logger)
            except ValueError:
                self._logger.log(Severity.ERROR, "Serialization assertion stdVersionRead == kVERSION failed")
                return None
            module.engines.append(engine)
            return engine

    class Module:
        __version__ = version
        ILogger = Logger
        OnnxParser = Parser

        def __init__(self):
            self.built, self.engines = [], []
            for name in ENUMS:
                members = [full.split(".")[1] for full in TABLE["names"] if full.startswith(f"{name}.")]
                present = [m for m in members if exists(f"{name}.{m}", version) and m.isupper()]
                if present:
                    setattr(self, name, Members(name, {m: i for i, m in enumerate(present)}))
            used.clear()
            self.used = used

    module = Module()
    module.Builder, module.Runtime = Builder, Runtime
    return module


DTYPES = {"tensor(uint8)": np.uint8, "tensor(int32)": np.int32, "tensor(float)": np.float32}


def host_array(address, shape, dtype):
    """The memory at an address as an array."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    block = (ctypes.c_uint8 * count).from_address(address)
    return np.frombuffer(block, np.uint8).view(dtype).reshape(shape)


class FakeDevice:
    """Host memory behind the interface of `cuda_memory.CudaDevice`."""

    name, library = "NVIDIA Fake", "fake"

    def __init__(self, capability=(9, 0)):
        self.capability = capability
        self.uploads, self.downloads, self.streams = [], [], 0
        self._kept = []

    @contextmanager
    def current(self):
        yield

    def allocate(self, nbytes):
        from m2df_runtime.backends.tensorrt.cuda import DeviceMemory

        block = np.zeros(nbytes, np.uint8)
        self._kept.append(block)
        return DeviceMemory(self, block.ctypes.data, nbytes, lambda: None)

    def pinned(self, nbytes):
        return np.zeros(nbytes, np.uint8)

    def stream(self):
        self.streams += 1
        return self.streams

    def upload(self, address, source, stream):
        self.uploads.append(source.nbytes)
        host_array(address, (source.nbytes,), np.uint8)[...] = source

    def download(self, target, address, stream):
        self.downloads.append(target.nbytes)
        target[...] = host_array(address, (target.nbytes,), np.uint8)

    def synchronize(self, stream):
        pass
