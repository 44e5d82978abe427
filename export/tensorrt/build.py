"""One plan: a graph parsed, checked and built. Runs in a process of its own (builder.py), which may be killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nuwaxl.engine.bundle_schema import TensorSpec
from nuwaxl.engine.runners.tensorrt_module import load_tensorrt
from nuwaxl.errors import InputError, NuwaxlError
from nuwaxl.export.tensorrt.progress import Progress
from nuwaxl.files import keep_file

REFIT = "refit"

# TensorRT's names of the manifest's types.
_TYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
}


class BuildError(NuwaxlError):
    """TensorRT could not read or build a graph. Command-line tools exit with status 1."""


@dataclass(frozen=True)
class Request:
    """One plan to build.

    Attributes:
        graph: the ONNX file.
        sm: compute capabilities without the dot; TensorRT itself builds for the GPU at hand, whose one this is.
        batches: one optimisation profile each, of exactly that batch.
        flags: "refit".
        timing_cache: where TensorRT keeps what it timed, read and written; None for no such file.
        plugins: the bundle, whose kernels replace `nuwaxl` nodes; None to build the nodes' bodies.
    """

    graph: Path
    runtime: str
    sm: tuple[int, ...]
    batches: tuple[int, ...]
    flags: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    timing_cache: Path | None = None
    plugins: Path | None = None


@dataclass
class Parsed:
    """A network that TensorRT has read; `keep` are the objects that must outlive it."""

    trt: Any
    logger: Any
    builder: Any
    network: Any
    keep: tuple[Any, ...]


class Messages:
    """What TensorRT says: the last error is the reason of a failure. Warnings are dropped."""

    def __init__(self, trt: Any) -> None:
        messages = self.errors = []

        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    messages.append(" ".join(message.split()))

        self.logger = Logger()

    def first(self) -> str:
        """The first error, or that there was none."""
        return self.errors[0] if self.errors else "no reason given"


def parse(request: Request, trt: Any | None = None) -> Parsed:
    """Read the graph as a strongly typed network, and check its tensors against the manifest's.

    Raises:
        BuildError: TensorRT cannot read it.
        InputError: its tensors are not those of the manifest.
    """
    trt = load_tensorrt(request.runtime) if trt is None else trt
    messages = Messages(trt)
    builder = trt.Builder(messages.logger)
    creation = trt.NetworkDefinitionCreationFlag
    flags = 1 << int(creation.STRONGLY_TYPED)
    if request.plugins is not None:
        flags |= 1 << int(creation.PREFER_AOT_PYTHON_PLUGINS)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, messages.logger)
    if not _read(request, parser):
        error = parser.get_error(0)
        raise BuildError(f"{request.graph.name}: {request.runtime} cannot read it: {' '.join(error.desc().split())}")
    _let_attention_be_decomposed(trt, network)
    parsed = Parsed(trt, messages, builder, network, (parser,))
    _check(request, parsed)
    return parsed


def _read(request: Request, parser: Any) -> bool:
    """Give the graph to the parser; large weights lie beside it."""
    if request.plugins is None:
        return bool(parser.parse_from_file(str(request.graph)))
    # TensorRT's own package, and what registers in it, are for graphs with plugins alone.
    import tensorrt.plugin as trtp

    from nuwaxl.export.tensorrt.kernels import Kernels, with_plugins
    from nuwaxl.export.tensorrt.plugins import register

    kernels = Kernels(request.plugins, request.sm[0])
    register(trtp, kernels, kernels.nodes())
    return bool(parser.parse(with_plugins(request.graph, kernels.nodes()), str(request.graph)))


def _let_attention_be_decomposed(trt: Any, network: Any) -> None:
    """TensorRT refuses a network with an attention that none of its kernels fits, such as one with heads of 8 channels,
    unless it may fall back to products and a softmax."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None)  # of the versions that have attention as an operation
    for index in range(network.num_layers if kind is not None else 0):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer  # the binding gives the base class
            layer.attention.decomposable = True


def build(request: Request, report: Callable[[str, float], bool], trt: Any | None = None) -> Any:
    """Build the plan; its bytes as a buffer.

    Args:
        report: called with the phase and the fraction done; False gives the build up.

    Raises:
        BuildError: TensorRT cannot read or build it, or it was given up.
        InputError: its tensors are not those of the manifest.
    """
    parsed = parse(request, trt)
    trt, builder, network = parsed.trt, parsed.builder, parsed.network
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 means float32
    if REFIT in request.flags:
        config.set_flag(trt.BuilderFlag.REFIT)
    if request.runtime == "tensorrt-rtx":
        config.num_compute_capabilities = len(request.sm)
        for index, sm in enumerate(request.sm):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
    for batch in request.batches:
        config.add_optimization_profile(_profile(builder, network, batch))
    monitor = config.progress_monitor = _monitor(trt, report)
    cache = _timing_cache(config, request.timing_cache)
    plan = builder.build_serialized_network(network, config)
    del monitor
    if plan is None:
        raise BuildError(f"{request.graph.name}: {request.runtime} cannot build it: {parsed.logger.first()}")
    if cache is not None and request.timing_cache is not None:
        keep_file(request.timing_cache, cache.serialize())
    return plan


def _check(request: Request, parsed: Parsed) -> None:
    network, types = parsed.network, parsed.trt.DataType
    found = {
        "input": [network.get_input(i) for i in range(network.num_inputs)],
        "output": [network.get_output(i) for i in range(network.num_outputs)],
    }
    for kind, specs in (("input", request.inputs), ("output", request.outputs)):
        tensors = {tensor.name: (str(tensor.dtype), tuple(tensor.shape)) for tensor in found[kind]}
        wanted = {
            spec.name: (
                str(getattr(types, _TYPES[spec.dtype])),
                tuple(-1 if isinstance(size, str) else size for size in spec.shape),
            )
            for spec in specs
        }
        if tensors != wanted:
            names = sorted(name for name in tensors.keys() | wanted.keys() if tensors.get(name) != wanted.get(name))
            raise InputError(
                expected=f"the {kind}s of {request.graph.name} as in the manifest",
                found=f"{names[0]}: {tensors.get(names[0])} instead of {wanted.get(names[0])}",
                fix="export the bundle again",
            )


def _profile(builder: Any, network: Any, batch: int) -> Any:
    """A profile of exactly one batch: least, usual and most are the same."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = [batch if size == -1 else size for size in tensor.shape]
        profile.set_shape(tensor.name, shape, shape, shape)
    return profile


def _monitor(trt: Any, report: Callable[[str, float], bool]) -> Any:
    progress = Progress()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress.step(phase_name, step)
            return report(phase_name, progress.fraction)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


def _timing_cache(config: Any, path: Path | None) -> Any:
    """The timing cache of a file, an empty one where that cannot be read or is another version's."""
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache
