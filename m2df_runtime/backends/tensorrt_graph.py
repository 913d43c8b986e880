"""One TensorRT engine as a `Graph`: shapes, buffers, execution contexts and CUDA graphs.

Every thread has a lane of its own: buffers allocated once for the largest shapes of the profile, one
execution context, and for shapes that keep coming a CUDA graph. A CUDA graph is only good while the
context it was captured from stays as it was, so each captured shape has a context to itself.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends import DeviceTensor, Tensor, Tensors
from m2df_runtime.backends.cuda_memory import CudaDevice, capture
from m2df_runtime.backends.engine_files import EngineUnusable
from m2df_runtime.errors import InputError

# TensorRT's own table (trt.nptype) fails in 8.5 with numpy 1.24 and later.
DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32), "HALF": np.dtype(np.float16), "INT8": np.dtype(np.int8),
    "INT32": np.dtype(np.int32), "INT64": np.dtype(np.int64), "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
}  # fmt: skip
CAPTURE_AT = 3  # a shape's third run: two alike may be chance, and a context costs memory
CAPTURED_SHAPES = 4

Shape = tuple[int, ...]
Key = tuple[tuple[str, Shape, int], ...]

_log = logging.getLogger(__name__)


class TensorSignature(Protocol):
    """Name, element type and shape; dynamic axes by name. `bundle.TensorInfo` is one."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int | str, ...]: ...


class GraphSignature(Protocol):
    """Inputs and outputs of a graph. `bundle.GraphInfo` is one."""

    @property
    def inputs(self) -> Sequence[TensorSignature]: ...
    @property
    def outputs(self) -> Sequence[TensorSignature]: ...


@dataclass
class Lane:
    """What one thread runs an engine with."""

    device: CudaDevice
    stream: int
    cuda_graphs: bool
    context: Any = None
    addresses: dict[str, int] = field(default_factory=dict)
    staging: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    memory: list[object] = field(default_factory=list)
    runs: Counter[Key] = field(default_factory=Counter)
    captured: dict[Key, tuple[Any, Callable[[], object]]] = field(default_factory=dict)

    def reserve(self, name: str, nbytes: int) -> None:
        """Allocate the device and host buffer of one tensor."""
        memory = self.device.allocate(max(nbytes, 1))
        self.memory.append(memory)
        self.addresses[name] = memory.address
        self.staging[name] = self.device.pinned(max(nbytes, 1))

    def place(self, name: str, value: Tensor, dtype: np.dtype[Any]) -> int:
        """Address of an input on the device; an array of the host is copied there."""
        if isinstance(value, DeviceTensor):
            return value.address
        nbytes = value.size * dtype.itemsize
        staged = self.staging[name][:nbytes]
        np.copyto(staged.view(dtype).reshape(value.shape), value, casting="same_kind")
        self.device.upload(self.addresses[name], staged, self.stream)
        return self.addresses[name]

    def fetch(self, name: str, shape: Shape, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Start to copy an output to the host; the array is filled once the stream is idle."""
        staged = self.staging[name][: math.prod(shape) * dtype.itemsize]
        self.device.download(staged, self.addresses[name], self.stream)
        return staged.view(dtype).reshape(shape)


class TensorRTGraph:
    """A deserialised engine.

    Args:
        engine: `ICudaEngine`.
        signature: Inputs and outputs of the graph, dynamic axes by name.
        label: Names the engine in error messages.
        new_lane: Makes the calling thread's lane.
        last_error: TensorRT's newest message.
        shares_profiles: Contexts may share an optimisation profile (8.6 and later).

    Raises:
        EngineUnusable: The engine's inputs and outputs are not those of the signature.
    """

    def __init__(
        self,
        engine: Any,  # noqa: ANN401 - TensorRT has no static types
        signature: GraphSignature,
        label: str,
        new_lane: Callable[[], Lane],
        last_error: Callable[[], str | None],
        *,
        shares_profiles: bool = True,
    ) -> None:
        self._engine = engine
        self._label = label
        self._new_lane = new_lane
        self._last_error = last_error
        self._shares_profiles = shares_profiles
        self._inputs: dict[str, TensorSignature] = {tensor.name: tensor for tensor in signature.inputs}
        self._outputs: dict[str, TensorSignature] = {tensor.name: tensor for tensor in signature.outputs}
        self._dtypes = self._checked_dtypes()
        self._limits = self._profile_limits()
        self._rows = _row_axis(signature)
        self._lanes = threading.local()
        self._contexts = 0
        self._lock = threading.Lock()

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """See `Graph.run`. More rows than the engine's profile holds run one part after the other.

        Raises:
            InputError: Another axis is beyond the profile.
        """
        parts = self._split(inputs)
        if len(parts) > 1:
            outputs = [self.run(part) for part in parts]
            return {name: np.concatenate([output[name] for output in outputs]) for name in self._outputs}
        lane = self._lane()
        with lane.device.current():
            shapes = self._execute(lane, inputs)
            views = {name: lane.fetch(name, shape, self._dtypes[name]) for name, shape in shapes.items()}
            lane.device.synchronize(lane.stream)
        return {name: view.copy() for name, view in views.items()}

    def run_resident(self, inputs: Tensors) -> dict[str, Tensor]:
        """See `Graph.run_resident`. What needs several runs comes back to the host."""
        if len(self._split(inputs)) > 1:
            return dict(self.run(inputs))
        lane = self._lane()
        with lane.device.current():
            shapes = self._execute(lane, inputs)
            lane.device.synchronize(lane.stream)
        return {
            name: DeviceTensor(lane.addresses[name], shape, self._dtypes[name], lane) for name, shape in shapes.items()
        }

    def _execute(self, lane: Lane, inputs: Tensors) -> dict[str, Shape]:
        """Queue uploads and one run; the shapes of the outputs."""
        key: Key = tuple(
            (name, tuple(inputs[name].shape), lane.place(name, inputs[name], self._dtypes[name]))
            for name in self._inputs
        )
        if key in lane.captured:
            context, launch = lane.captured[key]
            launch()
            return self._output_shapes(context)
        self._bind(lane.context, lane, key)
        self._enqueue(lane.context, lane.stream)
        shapes = self._output_shapes(lane.context)
        lane.runs[key] += 1
        if lane.cuda_graphs and lane.runs[key] == CAPTURE_AT and len(lane.captured) < CAPTURED_SHAPES:
            self._capture(lane, key)
        return shapes

    def _capture(self, lane: Lane, key: Key) -> None:
        """Record this shape as a CUDA graph with a context of its own, or never try again in this lane."""
        context = self._create_context(lane)
        launch = None
        if context is not None:
            self._bind(context, lane, key)
            self._enqueue(context, lane.stream)  # the first run after a change of shapes does what cannot be recorded
            lane.device.synchronize(lane.stream)
            launch = capture(lane.stream, lambda: bool(context.execute_async_v3(lane.stream)))
        if launch is None:
            lane.cuda_graphs = False
            _log.debug("%s: runs without CUDA graphs (%s)", self._label, self._last_error())
        else:
            lane.captured[key] = (context, launch)

    def _bind(self, context: Any, lane: Lane, key: Key) -> None:  # noqa: ANN401
        for name, shape, address in key:
            if not context.set_input_shape(name, shape):
                raise InputError(f"{self._label}: {name} {shape} is refused: {self._last_error() or 'no reason given'}")
            context.set_tensor_address(name, address)
        for name in self._outputs:
            context.set_tensor_address(name, lane.addresses[name])

    def _enqueue(self, context: Any, stream: int) -> None:  # noqa: ANN401
        if not context.execute_async_v3(stream):
            raise RuntimeError(self._last_error() or "TensorRT could not queue the run")

    def _output_shapes(self, context: Any) -> dict[str, Shape]:  # noqa: ANN401
        return {name: tuple(int(size) for size in context.get_tensor_shape(name)) for name in self._outputs}

    def _lane(self) -> Lane:
        lane: Lane | None = getattr(self._lanes, "lane", None)
        if lane is None:
            lane = self._new_lane()
            with lane.device.current():
                lane.context = self._create_context(lane)
                if lane.context is None:
                    raise InputError(
                        f"{self._label}: no execution context is left for another thread",
                        "TensorRT 8.5 runs one thread per session, open one session per thread",
                    )
                for tensor in (*self._inputs.values(), *self._outputs.values()):
                    largest = [size if isinstance(size, int) else self._limits[size][1] for size in tensor.shape]
                    lane.reserve(tensor.name, math.prod(largest) * self._dtypes[tensor.name].itemsize)
            self._lanes.lane = lane
        return lane

    def _create_context(self, lane: Lane) -> Any:  # noqa: ANN401
        """A new execution context; None where every profile is taken by another one."""
        with self._lock:
            index = 0 if self._shares_profiles else self._contexts
            if index >= self._engine.num_optimization_profiles:
                return None
            context = self._engine.create_execution_context()
            if context is None:
                raise MemoryError(self._last_error() or "no execution context")
            self._contexts += 1
        if index:  # the first context has profile 0 already
            context.set_optimization_profile_async(index, lane.stream)
            lane.device.synchronize(lane.stream)
        return context

    def _split(self, inputs: Tensors) -> list[Tensors]:
        """The inputs in parts that fit the profile, and a check of every axis that cannot be split."""
        sizes = self._sizes(inputs)
        for axis, (low, high) in self._limits.items():
            fits = low <= sizes[axis] if axis == self._rows else low <= sizes[axis] <= high
            if not fits:
                raise InputError(
                    f"{self._label}: {axis} = {sizes[axis]}, the engine was built for {low} to {high}",
                    f"build it again with a larger --batch {axis}=MIN,OPT,MAX",
                )
        if self._rows is None or sizes[self._rows] <= self._limits[self._rows][1]:
            return [inputs]
        step = self._limits[self._rows][1]
        divided = [name for name, tensor in self._inputs.items() if tensor.shape[0] == self._rows]
        return [
            {name: value[start : start + step] if name in divided else value for name, value in inputs.items()}
            for start in range(0, sizes[self._rows], step)
        ]

    def _sizes(self, inputs: Tensors) -> dict[str, int]:
        """Sizes of the dynamic axes.

        Raises:
            InputError: An input is missing or has another shape or type than the graph takes.
        """
        sizes: dict[str, int] = {}
        for name, tensor in self._inputs.items():
            shape = tuple(inputs[name].shape)
            expected = [sizes.setdefault(axis, size) if isinstance(axis, str) else axis
                        for axis, size in zip(tensor.shape, shape, strict=False)]  # fmt: skip
            if len(shape) != len(tensor.shape) or list(shape) != expected:
                raise InputError(f"{self._label}: {name} has shape {shape}, the graph takes {tuple(tensor.shape)}")
        return sizes

    def _checked_dtypes(self) -> dict[str, np.dtype[Any]]:
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        expected: dict[str, TensorSignature] = {**self._inputs, **self._outputs}
        if set(names) != set(expected):
            raise EngineUnusable(f"{self._label}: has tensors {sorted(names)}, the graph {sorted(expected)}")
        dtypes: dict[str, np.dtype[Any]] = {}
        for name in names:
            kind = self._engine.get_tensor_dtype(name).name
            if kind not in DTYPES or DTYPES[kind].name != expected[name].dtype:
                raise EngineUnusable(f"{self._label}: {name} is {kind}, not {expected[name].dtype}")
            dtypes[name] = DTYPES[kind]
        return dtypes

    def _profile_limits(self) -> dict[str, tuple[int, int]]:
        """Smallest and largest size of every dynamic axis."""
        limits: dict[str, tuple[int, int]] = {}
        for name, tensor in self._inputs.items():
            low, _, high = self._engine.get_tensor_profile_shape(name, 0)
            for axis, least, most in zip(tensor.shape, low, high, strict=True):
                if isinstance(axis, str):
                    limits[axis] = (int(least), int(most))
        return limits


def _row_axis(signature: GraphSignature) -> str | None:
    """The axis that leads every output: its rows do not know of each other, so they can be run in parts."""
    leading = {tensor.shape[0] for tensor in signature.outputs}
    only = leading.pop() if len(leading) == 1 else None
    return only if isinstance(only, str) else None
