"""One TensorRT engine as a `Graph`: shapes, buffers, execution contexts and CUDA graphs.

Every thread has a lane of its own: buffers allocated once for the largest shapes of the profile, one
execution context, and for shapes that keep coming a CUDA graph. A CUDA graph is only good while the
context it was captured from stays as it was, so each captured shape has a context to itself.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from m2df_runtime.backends import DeviceTensor, Tensor, Tensors
from m2df_runtime.backends.tensorrt.cuda import capture
from m2df_runtime.backends.tensorrt.engine_files import EngineUnusable
from m2df_runtime.backends.tensorrt.lane import Context, Key, Lane, Shape
from m2df_runtime.errors import InputError

# TensorRT's own table (trt.nptype) fails in 8.5 with numpy 1.24 and later.
DTYPES: dict[str, np.dtype[Any]] = {
    "FLOAT": np.dtype(np.float32), "HALF": np.dtype(np.float16), "INT8": np.dtype(np.int8),
    "INT32": np.dtype(np.int32), "INT64": np.dtype(np.int64), "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
}  # fmt: skip
CAPTURE_AT = 3  # a shape's third run: two alike may be chance, and a context costs memory
CAPTURED_SHAPES = 4  # the one that was not used for longest makes room
COUNTED_SHAPES = 256

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
        self._free_profiles = list(range(engine.num_optimization_profiles))
        self._lock = threading.Lock()

    def run(self, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """See `Graph.run`. More rows than the engine's profile holds run one part after the other.

        Raises:
            InputError: Another axis is beyond the profile.
        """
        parts = self._split(inputs)
        if len(parts) > 1:
            outputs = [{name: value[known:] for name, value in self.run(part).items()} for known, part in parts]
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
            context, launch = lane.captured[key] = lane.captured.pop(key)  # the last one is the newest
            launch()
            return self._output_shapes(context.raw)
        assert lane.context is not None  # `_lane` made it
        self._bind(lane.context.raw, lane, key)
        self._enqueue(lane.context.raw, lane.stream)
        shapes = self._output_shapes(lane.context.raw)
        if len(lane.runs) >= COUNTED_SHAPES:  # addresses are part of the key, and every new class set brings new ones
            lane.runs.clear()
        lane.runs[key] += 1
        if lane.cuda_graphs and lane.runs[key] == CAPTURE_AT:
            self._capture(lane, key)
        return shapes

    def _capture(self, lane: Lane, key: Key) -> None:
        """Record this shape as a CUDA graph with a context of its own, or never try again in this lane."""
        context, launch = None, None
        try:
            context = self._spare_context(lane)
            if context is not None:
                raw = context.raw
                self._bind(raw, lane, key)
                self._enqueue(raw, lane.stream)  # the first run after a change of shapes does what cannot be recorded
                lane.device.synchronize(lane.stream)
                launch = capture(lane.stream, lambda: bool(raw.execute_async_v3(lane.stream)))
        except (InputError, MemoryError, RuntimeError) as error:  # this run is done; it only stays as fast as it is
            _log.debug("%s: no CUDA graph: %s", self._label, error)
        if context is None or launch is None:
            lane.cuda_graphs = False
            _log.debug("%s: runs without CUDA graphs (%s)", self._label, self._last_error())
        else:
            lane.captured[key] = (context, launch)

    def _spare_context(self, lane: Lane) -> Context | None:
        """A context for one more shape; the shape that was not used for longest makes room where there is none."""
        lane.device.synchronize(lane.stream)
        while True:
            context = self._create_context(lane) if len(lane.captured) < CAPTURED_SHAPES else None
            if context is not None or not lane.captured:
                return context
            del lane.captured[next(iter(lane.captured))]

    def _bind(self, context: Any, lane: Lane, key: Key) -> None:  # noqa: ANN401
        for name, shape, address in key:
            if not context.set_input_shape(name, shape):
                raise InputError(f"{self._label}: {name} {shape} is refused: {self._last_error() or 'no reason given'}")
            self._place(context, name, address)
        for name in self._outputs:
            self._place(context, name, lane.addresses[name])

    def _place(self, context: Any, name: str, address: int) -> None:  # noqa: ANN401
        if not context.set_tensor_address(name, address):
            raise RuntimeError(self._last_error() or f"TensorRT refuses the memory of {name}")

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

    def _create_context(self, lane: Lane) -> Context | None:
        """A new execution context; None where every profile is taken by another one."""
        free = self._free_profiles
        with self._lock:
            if self._shares_profiles:
                index, release = 0, _nothing
            elif free:
                index = free.pop(0)
                release = partial(free.insert, 0, index)
            else:
                return None
            context = Context(self._engine.create_execution_context(), release)
        if context.raw is None:
            raise MemoryError(self._last_error() or "no execution context")
        if not self._shares_profiles:  # others have profile 0 already
            if not context.raw.set_optimization_profile_async(index, lane.stream):
                raise RuntimeError(self._last_error() or f"TensorRT refuses profile {index}")
            lane.device.synchronize(lane.stream)
        return context

    def _split(self, inputs: Tensors) -> list[tuple[int, Tensors]]:
        """The inputs in parts that fit the profile, and a check of every axis that cannot be split.

        Each part comes with the number of its first rows that the part before it has already: the last one
        reaches back where what is left is less than the profile's smallest size.
        """
        sizes = self._sizes(inputs)
        for axis, (low, high) in self._limits.items():
            fits = low <= sizes[axis] if axis == self._rows else low <= sizes[axis] <= high
            if not fits:
                option = "MIN,OPT,MAX" if axis == "N" else f"{axis}=MIN,OPT,MAX"  # N counts frames, the option clips
                raise InputError(
                    f"{self._label}: {axis} = {sizes[axis]}, the engine was built for {low} to {high}",
                    f"build it again for that: m2df-export engines --batch {option}",
                )
        if self._rows is None or sizes[self._rows] <= self._limits[self._rows][1]:
            return [(0, inputs)]
        total, (least, step) = sizes[self._rows], self._limits[self._rows]
        divided = [name for name, tensor in self._inputs.items() if tensor.shape[0] == self._rows]
        parts: list[tuple[int, Tensors]] = []
        for start in range(0, total, step):
            first = min(start, total - least)
            part = {name: value[first : start + step] if name in divided else value for name, value in inputs.items()}
            parts.append((start - first, part))
        return parts

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
        dynamic = {
            name: tensor for name, tensor in self._inputs.items() if any(isinstance(a, str) for a in tensor.shape)
        }
        for name, tensor in dynamic.items():
            low, _, high = self._engine.get_tensor_profile_shape(name, 0)
            for axis, least, most in zip(tensor.shape, low, high, strict=True):
                if isinstance(axis, str):
                    limits[axis] = (int(least), int(most))
        return limits


def _nothing() -> None:
    """A shared profile needs no return."""


def _row_axis(signature: GraphSignature) -> str | None:
    """The axis that leads every output: its rows do not know of each other, so they can be run in parts."""
    leading = {tensor.shape[0] for tensor in signature.outputs}
    only = leading.pop() if len(leading) == 1 else None
    return only if isinstance(only, str) else None
