"""Stands in for the module of TensorRT: engines that run their ONNX graph with ONNX Runtime, as late as the fake CUDA
stream lets them, on the memory at the addresses they were given. A plan file is JSON that says what the engine is."""

import ctypes
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from nuwaxl.engine.runners.device.cuda import CudaDevice

from .fake_cuda import FakeCuda

Outputs = dict[str, np.ndarray]


def plan_bytes(graph: Path, batches: tuple[int, ...]) -> bytes:
    """The file of a plan of an ONNX graph."""
    return json.dumps({"graph": str(graph), "batches": list(batches)}).encode()


class FakeTensorRT:
    """What engine/runners/tensorrt_engine.py takes of the module.

    Attributes:
        change: called with the graph's name, the batch and the outputs, which it may change.
        executed: (graph, batch) in the order in which the GPU came to them.
        queued: the same in the order of the calls.
    """

    class Logger:
        ERROR = 1

        def __init__(self, severity: int) -> None: ...

    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    CudaGraphStrategy = SimpleNamespace(DISABLED="disabled")

    def __init__(self, cuda: FakeCuda, version: str = "11.4.0", capturable: bool | None = None) -> None:
        self.__version__ = version
        self.cuda = cuda
        self.capturable = capturable
        self.fails_in_capture = False
        self.change: Callable[[str, int, Outputs], None] = lambda graph, batch, outputs: None
        self.executed: list[tuple[str, int]] = []
        self.queued: list[tuple[str, int]] = []
        self.caches: list[bytes] = []  # what runtime caches were given
        self.refuse = False
        self.scratch = 4096
        self.alive: weakref.WeakSet[_Engine | _Context] = weakref.WeakSet()  # engines and contexts
        self.bound: set[int] = set()  # addresses that tensors were ever given

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda content: None if self.refuse else _Engine(self, content))


class _Engine:
    def __init__(self, trt: FakeTensorRT, content: bytes) -> None:
        facts = json.loads(content)
        self.trt = trt
        trt.alive.add(self)
        self.batches: list[int] = facts["batches"]
        self.graph = Path(facts["graph"]).stem
        self.session = onnxruntime.InferenceSession(facts["graph"], providers=["CPUExecutionProvider"])
        self.inputs = {tensor.name: tensor.shape[1:] for tensor in self.session.get_inputs()}
        self.outputs = {tensor.name: tensor.shape[1:] for tensor in self.session.get_outputs()}
        self.names = [*self.inputs, *self.outputs]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(self.batches)
        self.device_memory_size_v2 = trt.scratch

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return [[self.batches[profile_index], *self.inputs[name]]] * 3

    def create_runtime_config(self) -> Any:
        return _RuntimeConfig(self.trt)

    def create_execution_context(self, how: Any) -> Any:
        assert how == "user" or (isinstance(how, _RuntimeConfig) and how.whole)
        return _Context(self)


class _RuntimeConfig:
    def __init__(self, trt: FakeTensorRT) -> None:
        self.trt = trt
        self.strategy = ""
        self.cache: Any = None
        self.cuda_graph_strategy = ""
        self.dynamic_shapes_kernel_specialization_strategy = ""

    @property
    def whole(self) -> bool:
        """Whether our memory, our CUDA graphs and the kernels of their shapes are used."""
        ours = (self.strategy, self.cuda_graph_strategy, self.dynamic_shapes_kernel_specialization_strategy)
        return ours == ("user", "disabled", "eager") and self.cache is not None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> Any:
        return SimpleNamespace(deserialize=self.trt.caches.append, serialize=lambda: b"compiled")

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True

    def get_runtime_cache(self) -> Any:
        return self.cache


class _Context:
    """Runs only if everything was set as TensorRT wants it."""

    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        engine.trt.alive.add(self)
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.batch = 0
        self.memory = (0, 0)
        self.switched = False
        if engine.trt.capturable is not None:
            self.is_stream_capturable = lambda stream: engine.trt.capturable

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self.engine.device_memory_size_v2
        assert self.engine.trt.cuda.live[memory] == "device"
        self.memory = (memory, size)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self.batch = self.engine.batches[profile_index]
        self.shapes.clear()
        self.switched = False
        self.engine.trt.cuda.objects[stream_handle].add(self._switch)
        return True

    def _switch(self) -> None:
        self.switched = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return self.shapes[name] == (self.batch, *self.engine.inputs[name])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        self.engine.trt.bound.add(memory)
        return name in self.engine.names

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self.switched, "what the switch of profiles copies is there"
        if self.addresses.keys() != set(self.engine.names) or self.shapes.keys() != self.engine.inputs.keys():
            return False
        if self.engine.trt.fails_in_capture and self.engine.trt.cuda.objects[stream_handle].captured is not None:
            return False
        self.engine.trt.queued.append((self.engine.graph, self.batch))
        self.engine.trt.cuda.objects[stream_handle].add(self._execute)
        return True

    def _execute(self) -> None:
        engine = self.engine
        inputs = {}
        for tensor in engine.session.get_inputs():
            dtype = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}[tensor.type]
            shape = (self.batch, *tensor.shape[1:])
            count = int(np.prod(shape)) * np.dtype(dtype).itemsize
            content = ctypes.string_at(self.addresses[tensor.name], count)
            inputs[tensor.name] = np.frombuffer(content, dtype=dtype).reshape(shape)
        outputs = dict(zip(engine.outputs, engine.session.run(None, inputs), strict=True))
        engine.trt.change(engine.graph, self.batch, outputs)
        engine.trt.executed.append((engine.graph, self.batch))
        for name, array in outputs.items():
            ctypes.memmove(self.addresses[name], np.ascontiguousarray(array).ctypes.data, array.nbytes)


def alive_at_close(trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of engines and contexts that are left whenever a CUDA device is closed from now on."""
    left: list[int] = []
    close = CudaDevice.close

    def closed(device: CudaDevice) -> None:
        left.append(len(trt.alive))
        close(device)

    monkeypatch.setattr(CudaDevice, "close", closed)
    return left
