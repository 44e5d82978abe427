"""A plan on a device: the engine, a context for every use of a batch bucket, and one scratch for all of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nuwaxl.engine.bundle_schema import Graph, Plan
from nuwaxl.engine.plans import build_command
from nuwaxl.engine.runners.device.base import Device, Memory, Stream
from nuwaxl.errors import InputError, RenderError
from nuwaxl.files import keep_file


class Scratch:
    """The memory in which contexts keep activations. All run one after another on one stream, so they share it; it
    grows while plans are loaded, and not once a context has been made."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._bytes = 0
        self._memory: Memory | None = None

    def reserve(self, count: int) -> None:
        """At least so many bytes will be needed."""
        if count > self._bytes:
            assert self._memory is None, "contexts hold the address"
            self._bytes = count

    @property
    def address(self) -> int:
        """Where it is."""
        if self._memory is None:
            self._memory = self._device.allocate(max(self._bytes, 1))
        return self._memory.address

    @property
    def bytes(self) -> int:
        """How long it is."""
        return self._bytes

    def free(self) -> None:
        """Give it back, once the contexts are."""
        if self._memory is not None:
            self._memory.free()
            self._memory = None


class PlanEngine:
    """One plan, deserialised.

    Args:
        trt: the module of the plan's runtime.
        scratch: shared by the plans of a runner.

    Raises:
        InputError: TensorRT cannot load the file here, or its tensors or profiles are not the plan's.
    """

    def __init__(self, trt: Any, plan: Plan, graph: Graph, file: Path, scratch: Scratch, cache: Path | None) -> None:
        self.plan = plan
        self.graph = graph
        self._trt = trt
        self._scratch = scratch
        self._cache_file = cache
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._contexts: list[Context] = []
        self._engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
        if self._engine is None:
            raise _unusable(plan, "TensorRT refused to load it")
        self._check()
        self._config = self._runtime_config()
        scratch.reserve(int(self._engine.device_memory_size_v2))

    def context(self, bucket: int, stream: Stream) -> "Context":
        """A context of the bucket's profile, with the shapes of all inputs set.

        Raises:
            RenderError: there is no memory for it.
        """
        context = Context(self._create(), [spec.name for spec in (*self.graph.inputs, *self.graph.outputs)])
        self._contexts.append(context)
        shapes = {spec.name: (bucket, *spec.shape[1:]) for spec in self.graph.inputs}
        context.begin(self.plan.batches.index(bucket), shapes, self._scratch, stream)
        return context

    def free(self) -> None:
        """Give the engine and all its contexts back, whoever still holds them; of no effect a second time."""
        for context in self._contexts:
            context.free()
        self._contexts.clear()
        self._config = self._engine = None

    def save_cache(self) -> None:
        """Keep what TensorRT-RTX compiled for this GPU, for the next start; of no effect where it cannot be written."""
        if self._config is None or self._cache_file is None:
            return
        keep_file(self._cache_file, bytes(self._config.get_runtime_cache().serialize()))

    def _create(self) -> Any:
        """TensorRT's context, without memory for activations."""
        context = (
            self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            if self._config is None
            else self._engine.create_execution_context(self._config)
        )
        if context is None:
            raise RenderError(
                f"expected a context of the plan of {self.plan.graph}; found that TensorRT made none; "
                "use a smaller --max-batch"
            )
        return context

    def _runtime_config(self) -> Any:
        """TensorRT-RTX compiles when it loads: with what it compiled before. TensorRT itself needs none."""
        if self.plan.runtime != "tensorrt-rtx":
            return None
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # By default the first runs take fallback kernels, which our CUDA graphs would keep for good.
        config.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.DISABLED
        cache = config.create_runtime_cache()
        if self._cache_file is not None and self._cache_file.is_file():
            cache.deserialize(self._cache_file.read_bytes())  # refuses another GPU's or version's by itself
        config.set_runtime_cache(cache)
        return config

    def _check(self) -> None:
        """The engine's tensors and profiles are those that the manifest says."""
        engine, modes = self._engine, self._trt.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for mode, specs in ((modes.INPUT, self.graph.inputs), (modes.OUTPUT, self.graph.outputs)):
            found = {name for name in names if engine.get_tensor_mode(name) == mode}
            if found != {spec.name for spec in specs}:
                raise _unusable(self.plan, f"other tensors: {sorted(found)}")
        if engine.num_optimization_profiles != len(self.plan.batches):
            raise _unusable(self.plan, f"{engine.num_optimization_profiles} profiles")
        for profile, batch in enumerate(self.plan.batches):
            for spec in self.graph.inputs:
                shapes = [tuple(shape) for shape in engine.get_tensor_profile_shape(spec.name, profile)]
                if shapes != [(batch, *spec.shape[1:])] * 3:
                    raise _unusable(self.plan, f"{spec.name} of shapes {shapes} in profile {profile}")


class Context:
    """One execution context: tensors at fixed addresses, run on a stream."""

    def __init__(self, context: Any, names: list[str]) -> None:
        self._context = context
        self._names = names

    def begin(
        self, profile: int, shapes: Mapping[str, tuple[int | str, ...]], scratch: Scratch, stream: Stream
    ) -> None:
        """Take the memory for activations and a profile, for inputs of these shapes."""
        self._context.set_device_memory(scratch.address, scratch.bytes)
        _succeed(self._context.set_optimization_profile_async(profile, stream.handle), "set_optimization_profile_async")
        # Only the first profile of a context is free; what a switch copies must be there before the first run.
        stream.synchronize()
        for name, shape in shapes.items():
            _succeed(self._context.set_input_shape(name, shape), f"set_input_shape {name}")

    def bind(self, addresses: Mapping[str, int]) -> None:
        """Say where every tensor is."""
        assert addresses.keys() == set(self._names), "every tensor has its place"
        for name, address in addresses.items():
            _succeed(self._context.set_tensor_address(name, address), f"set_tensor_address {name}")

    def run(self, stream: Stream) -> None:
        """Queue one execution."""
        _succeed(self._context.execute_async_v3(stream.handle), "execute_async_v3")

    def capturable(self, stream: Stream) -> bool:
        """Whether a CUDA graph may be made of it; TensorRT-RTX says so, TensorRT finds out."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return True if ask is None else bool(ask(stream.handle))

    def free(self) -> None:
        """Give it back; of no effect a second time."""
        self._context = None


def _succeed(done: Any, what: str) -> None:
    if not done:
        raise RenderError(f"expected {what} of TensorRT to succeed; found that it did not; see its message above")


def _unusable(plan: Plan, found: str) -> InputError:
    return InputError(
        expected=f"a plan of {plan.graph} that {plan.runtime} {plan.version} can load in {plan.file}",
        found=found,
        fix=f"remove it, and build it again: {build_command(plan, 'BUNDLE')}",
    )
