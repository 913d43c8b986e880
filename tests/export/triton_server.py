"""What Triton does with a model repository, as far as its answers go, with ONNX Runtime as the backend.

Every file is parsed with the schema in tritonclient. The rules that its documentation and its ONNX Runtime backend
state are enforced: versions by policy, shapes from `max_batch_size` and `dims`, tensors checked against the files,
pinned versions of an ensemble's steps. `serve` answers tritonclient over gRPC. Nothing is batched or scheduled.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

ONNX_TYPES = {
    "tensor(float)": "TYPE_FP32",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(bool)": "TYPE_BOOL",
    "tensor(string)": "TYPE_STRING",
}
DTYPES = {"TYPE_FP32": np.float32, "TYPE_UINT8": np.uint8, "TYPE_BOOL": np.bool_, "TYPE_STRING": np.object_}


def type_name(tensor) -> str:
    return model_config_pb2.DataType.Name(tensor.data_type)


def read_config(folder: Path) -> model_config_pb2.ModelConfig:
    """A model's configuration; fields the schema does not know raise."""
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


def full_shape(config, tensor) -> list[int]:
    return [-1, *tensor.dims] if config.max_batch_size else list(tensor.dims)


def fits(actual, allowed) -> bool:
    return len(actual) == len(allowed) and all(a == b or b == -1 for a, b in zip(actual, allowed, strict=True))


class Model:
    """One loaded model: its configuration and, unless it is an ensemble, a session per served version."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.config = folder, read_config(folder)
        assert self.config.name == folder.name
        present = sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name[0] in "123456789")
        self.versions = present[-self.config.version_policy.latest.num_versions :]
        assert self.versions
        self.sessions = {}
        if self.config.platform == "onnxruntime_onnx":
            self.sessions = {v: self._session(folder / str(v) / "model.onnx") for v in self.versions}
        labelled = [output.label_filename for output in self.config.output if output.label_filename]
        self.labels = {name: (folder / name).read_text(encoding="utf-8").splitlines() for name in labelled}

    def _session(self, path: Path):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for tensors, found, exact in (
            (self.config.input, session.get_inputs(), False),
            (self.config.output, session.get_outputs(), True),
        ):
            assert {t.name for t in tensors} == {f.name for f in found}
            by_name = {f.name: f for f in found}
            for tensor in tensors:
                file = by_name[tensor.name]
                assert ONNX_TYPES[file.type] == type_name(tensor)
                shape = [size if isinstance(size, int) else -1 for size in file.shape]
                # The backend wants a dynamic first axis to batch on, fixed sizes repeated, and for outputs dynamic
                # ones too.
                assert not self.config.max_batch_size or shape[0] == -1
                declared = full_shape(self.config, tensor)
                assert declared == shape if exact else fits(declared, shape), (path, tensor.name, shape)
        return session


class Server:
    """The models of a repository, loaded as they are at this moment."""

    def __init__(self, repository: Path) -> None:
        folders = [path for path in sorted(repository.iterdir()) if path.is_dir()]
        self.models = {folder.name: Model(folder) for folder in folders}
        for model in self.models.values():
            for step in model.config.ensemble_scheduling.step:
                part = self.models[step.model_name]
                assert step.model_version in part.versions  # or the ensemble does not load
                assert model.config.max_batch_size <= part.config.max_batch_size

    def infer(self, name: str, inputs: dict[str, np.ndarray], version: int | None = None) -> dict[str, np.ndarray]:
        """Outputs of a model for one request."""
        model = self.models[name]
        version = version or model.versions[-1]
        assert version in model.versions
        self._check(model.config, model.config.input, inputs)
        if model.sessions:
            session = model.sessions[version]
            names = [output.name for output in session.get_outputs()]
            outputs = dict(zip(names, session.run(names, inputs), strict=True))
        else:
            outputs = self._ensemble(model.config, inputs)
        self._check(model.config, model.config.output, outputs)
        return outputs

    def _ensemble(self, config, tensors):
        tensors, waiting = dict(tensors), list(config.ensemble_scheduling.step)
        while waiting:
            step = next(s for s in waiting if all(t in tensors for t in s.input_map.values()))
            waiting.remove(step)
            outputs = self.infer(
                step.model_name, {key: tensors[value] for key, value in step.input_map.items()}, step.model_version
            )
            tensors |= {value: outputs[key] for key, value in step.output_map.items()}
        return {output.name: tensors[output.name] for output in config.output}

    @staticmethod
    def _check(config, declared, tensors) -> None:
        assert set(tensors) == {tensor.name for tensor in declared}
        for tensor in declared:
            value = tensors[tensor.name]
            assert value.dtype == DTYPES[type_name(tensor)]
            assert fits(value.shape, full_shape(config, tensor)), (config.name, tensor.name, value.shape)
            assert not config.max_batch_size or 1 <= len(value) <= config.max_batch_size


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, server: Server) -> None:
        self.server = server

    def ModelConfig(self, request, context):
        return service_pb2.ModelConfigResponse(config=self.server.models[request.name].config)

    def ModelInfer(self, request, context):
        inputs = {
            tensor.name: np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).reshape(tensor.shape)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        outputs = self.server.infer(request.model_name, inputs)
        model = self.server.models[request.model_name]
        response = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=str(model.versions[-1]))
        for wanted in request.outputs:
            value = outputs[wanted.name]
            if wanted.parameters["classification"].int64_param:
                value = self._classified(model, wanted, value)
            datatype = np_to_triton_dtype(value.dtype)
            response.outputs.add(name=wanted.name, datatype=datatype, shape=value.shape)
            raw = serialize_byte_tensor(value).item() if value.dtype == np.object_ else value.tobytes()
            response.raw_output_contents.append(raw)
        return response

    @staticmethod
    def _classified(model, wanted, values):
        """The `count` highest values of each row as `value:index:label`."""
        count = wanted.parameters["classification"].int64_param
        output = next(output for output in model.config.output if output.name == wanted.name)
        labels = model.labels[output.label_filename]
        order = np.argsort(-values, axis=1, kind="stable")[:, :count]
        texts = [
            [f"{row[i]:f}:{i}:{labels[i]}".encode() for i in best] for row, best in zip(values, order, strict=True)
        ]
        return np.array(texts, dtype=np.object_)


@contextmanager
def serve(repository: Path):
    """A gRPC server on a free port of this machine; yields its address."""
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(Server(repository)), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)
