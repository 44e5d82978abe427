"""A runner on ONNX Runtime's CPU provider."""

import importlib
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.devices import Worker
from nuwaxl.engine.runners.base import FEEDBACK, Float32, Segments, UInt8
from nuwaxl.errors import InputError

_PRECISIONS = ("fp32", "fp16")
_OF_PICTURES = ("decode", "encode")


class OnnxRuntimeRunner:
    """The bundle's graphs as ONNX Runtime sessions.

    The graphs of the inner loop are opened at once; text and encode, which not every worker needs, at their
    first use.

    Raises:
        InputError: ONNX Runtime is not installed, or cannot load a graph, or the bundle is in bfloat16.
    """

    def __init__(self, bundle: Bundle, worker: Worker) -> None:
        if bundle.manifest.precision not in _PRECISIONS:
            raise InputError(
                expected=f"a bundle in {' or '.join(_PRECISIONS)} for the device {worker.name}, whose runtime "
                "multiplies no other matrices",
                found=f"{bundle.manifest.precision} in {bundle.path}",
                fix="export it again with another --precision",
            )
        self._runtime = load_onnxruntime()
        self._bundle = bundle
        self._worker = worker
        self._sessions: dict[str, Any] = {}
        for name in ("prepare", "step", "decode"):
            self._session(name)

    def encode_text(self, tokens: NDArray[np.int64]) -> Float32:
        """See Runner.encode_text."""
        prompt: Float32 = self.run("text", {"tokens": tokens})["prompt"]
        return prompt

    def start(self, segments: Segments) -> "OnnxRuntimeDenoising":
        """See Runner.start."""
        return OnnxRuntimeDenoising(self, self.prepare(segments))

    def prepare(self, segments: Segments) -> dict[str, Any]:
        """The step graph's tensors of segments that begin, by name: state, x, history."""
        return {**self.run("prepare", segments.given), "x": segments.x, "history": np.zeros_like(segments.x)}

    def step(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """One call of the step graph: its inputs and its outputs by name."""
        return self.run("step", inputs)

    def decode(self, latents: Float32) -> UInt8:
        """See Runner.decode."""
        video: UInt8 = self.run("decode", {"latents": latents})["video"]
        return video

    def encode(self, video: UInt8) -> Float32:
        """See Runner.encode."""
        latents: Float32 = self.run("encode", {"video": video})["latents"]
        return latents

    def close(self) -> None:
        """See Runner.close."""
        self._sessions.clear()

    def run(self, graph: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """One call of a graph: its inputs and its outputs by name."""
        names = [tensor.name for tensor in self._bundle.manifest.graphs[graph].outputs]
        return dict(zip(names, self._session(graph).run(names, dict(inputs)), strict=True))

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            path = self._bundle.file(name)
            try:
                self._sessions[name] = self._runtime.InferenceSession(
                    str(path), sess_options=self._session_options(name), providers=["CPUExecutionProvider"]
                )
            except Exception as error:  # ONNX Runtime's errors have no common base class
                raise InputError(
                    expected=f"a graph that onnxruntime {self._runtime.__version__} can load at {path}",
                    found=str(error),
                    fix="install another onnxruntime, or export the bundle again",
                ) from error
            self._check_tensors(name, self._sessions[name])
        return self._sessions[name]

    def _check_tensors(self, name: str, session: Any) -> None:
        """Refuse a graph that has other inputs or outputs than the manifest says."""
        graph = self._bundle.manifest.graphs[name]
        for kind, said, found in (
            ("inputs", graph.inputs, session.get_inputs()),
            ("outputs", graph.outputs, session.get_outputs()),
        ):
            named, present = {tensor.name for tensor in said}, {tensor.name for tensor in found}
            if named != present:
                raise InputError(
                    expected=f"{kind} of {self._bundle.file(name)} as its manifest names them",
                    found=f"without {sorted(named - present)[:3]}, besides {sorted(present - named)[:3]}",
                    fix="export the bundle again",
                )

    def _session_options(self, graph: str) -> Any:
        options = session_options(self._runtime)
        options.intra_op_num_threads = self._worker.threads
        options.inter_op_num_threads = 1
        # Plans of the memory of one batch size do not fit the next: without them the peak was a fifth lower.
        options.enable_mem_pattern = False
        # The arena keeps what it ever took, in pieces that fit no other shape: of large pictures twice what is needed.
        options.enable_cpu_mem_arena = not (self._bundle.manifest.network.large and graph in _OF_PICTURES)
        # Spinning threads of one worker take the cores from another.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self._worker.alone else "0")
        return options


class OnnxRuntimeDenoising:
    """A batch under way on ONNX Runtime (see Denoising)."""

    def __init__(self, runner: OnnxRuntimeRunner, tensors: dict[str, Any]) -> None:
        self._runner = runner
        self._tensors = tensors
        self._no_noise = np.zeros_like(tensors["x"])

    def step(
        self, timestep: NDArray[np.int64], coefficients: Float32, guidance: Float32, noise: Float32 | None
    ) -> None:
        """See Denoising.step."""
        outputs = self._runner.step(
            {
                **self._tensors,
                "noise": self._no_noise if noise is None else noise,
                "timestep": timestep.astype(np.float32),
                "coefficients": coefficients,
                "guidance": guidance,
            }
        )
        for output, name in FEEDBACK.items():
            self._tensors[name] = outputs[output]

    def latents(self, slots: Sequence[int]) -> Float32:
        """See Denoising.latents."""
        latents: Float32 = np.asarray(self._tensors["x"][list(slots)], dtype=np.float32)
        return latents

    def join(self, segments: Segments) -> None:
        """See Denoising.join."""
        newcomers = self._runner.prepare(segments)
        self._replace({name: np.concatenate([own, newcomers[name]]) for name, own in self._tensors.items()})

    def keep(self, slots: Sequence[int]) -> None:
        """See Denoising.keep."""
        self._replace({name: own[list(slots)] for name, own in self._tensors.items()})

    def _replace(self, tensors: dict[str, Any]) -> None:
        self._tensors = tensors
        self._no_noise = np.zeros_like(tensors["x"])


def forbid_telemetry() -> None:
    """Keep ONNX Runtime from reporting machine and models to its makers, as its builds from 1.29 on do unless this is
    set before the import. Whoever has set it already has decided for themselves."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def session_options(runtime: Any) -> Any:
    """Options of a session that logs errors alone: its warnings are of what it does not make faster."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return options


def load_onnxruntime() -> ModuleType:
    """The onnxruntime module, imported only when a runner needs it.

    Raises:
        InputError: it is not installed.
    """
    forbid_telemetry()
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):  # Ctrl-C while its native module began
            raise error.__cause__ from None
        raise InputError(
            expected="an inference runtime (the package onnxruntime)",
            found=str(error),
            fix="pip install 'nuwaxl[cpu]', or 'nuwaxl[cuda]' on a machine with a GPU",
        ) from error
