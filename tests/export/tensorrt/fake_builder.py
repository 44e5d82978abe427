"""Stands in for the module of TensorRT where plans are built: it keeps what it was asked for, and builds nothing."""

from types import SimpleNamespace
from typing import Any


class FakeTensorRT:
    """What export/tensorrt/build.py takes of the module.

    Attributes:
        inputs: of the network that every graph is read as: name, type and shape.
        network_flags: of the network that was made, as one number.
        build_flags: of the build, by name.
        profiles: what each profile was given, by input: (least, usual, most).
        caches: contents that timing caches were made of; `refused` are those of another version.
        taken: (content, whether a cache of another GPU is taken too) of caches that were set.
        plan: what a build gives; None where it fails.
    """

    class ILogger:
        ERROR = 1
        INTERNAL_ERROR = 0

        def __init__(self) -> None: ...

    class IProgressMonitor:
        def __init__(self) -> None: ...

    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1, PREFER_AOT_PYTHON_PLUGINS=3)
    BuilderFlag = SimpleNamespace(TF32="tf32", REFIT="refit")
    ComputeCapability = SimpleNamespace(SM89="sm89", SM90="sm90")
    DataType = SimpleNamespace(FLOAT="float", INT64="int64")
    LayerType = SimpleNamespace()

    def __init__(self, inputs: list[tuple[str, str, tuple[int, ...]]]) -> None:
        self.inputs = [SimpleNamespace(name=name, dtype=dtype, shape=shape) for name, dtype, shape in inputs]
        self.network_flags = 0
        self.build_flags = {"tf32"}
        self.profiles: list[dict[str, tuple[Any, ...]]] = []
        self.caches: list[bytes] = []
        self.refused: list[bytes] = []
        self.taken: list[tuple[bytes, bool]] = []
        self.plan: bytes | None = b"plan"

    def Builder(self, logger: Any) -> Any:
        return SimpleNamespace(
            create_network=self._network,
            create_builder_config=lambda: _Config(self),
            create_optimization_profile=_Profile,
            build_serialized_network=lambda network, config: self.plan,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return SimpleNamespace(parse_from_file=lambda path: True)

    def _network(self, flags: int) -> Any:
        self.network_flags = flags
        return SimpleNamespace(
            num_inputs=len(self.inputs), get_input=self.inputs.__getitem__, num_outputs=0, num_layers=0
        )


class _Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, ...]] = {}

    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        self.shapes[name] = (tuple(least), tuple(usual), tuple(most))


class _Config:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.set_flag, self.clear_flag = trt.build_flags.add, trt.build_flags.discard

    def add_optimization_profile(self, profile: Any) -> None:
        self._trt.profiles.append(profile.shapes)

    def create_timing_cache(self, content: bytes) -> Any:
        self._trt.caches.append(content)
        return SimpleNamespace(content=content, serialize=lambda: b"timed " + content)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache.content in self._trt.refused:
            return ignore_mismatch
        self._trt.taken.append((cache.content, ignore_mismatch))
        return True
