"""ONNX Runtime's CUDA provider on one GPU: what is CUDA's own of a BoundRunner.

One stream a worker; the step graph is captured into a CUDA graph for every batch bucket and replayed. The products of a
float32 bundle are exact (no TF32) unless asked for.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.devices import Worker
from nuwaxl.engine.runners.bound import BoundRunner
from nuwaxl.engine.runners.custom_ops import KernelLibrary
from nuwaxl.engine.runners.device.base import Stream
from nuwaxl.engine.runners.device.cuda import CudaDevice
from nuwaxl.engine.runners.onnxruntime import load_onnxruntime, session_options
from nuwaxl.errors import InputError, RenderError

PROVIDER = "CUDAExecutionProvider"
_INSTALL = "pip install 'nuwaxl[cuda]' (and uninstall onnxruntime, its CPU build), with the CUDA and cuDNN it names"


class CudaRunner(BoundRunner):
    """See Runner.

    Args:
        tf32: let float32 products round their factors to 10 bits of mantissa, which is several times faster. Those of a
            bundle in half precision always may.

    Raises:
        InputError: no such GPU, no ONNX Runtime with the CUDA provider, or a graph it cannot load.
    """

    def __init__(self, bundle: Bundle, worker: Worker, *, tf32: bool = False) -> None:
        runtime = load_onnxruntime()
        device = CudaDevice(worker.index)
        try:
            check_provider(runtime)
            stream = device.stream()
            library = KernelLibrary(bundle, device.sm, device.index)
            self._steps = OneThread(device)
            # Its channels-last convolution takes no bfloat16: a session would not open.
            nhwc = library.sm is not None and bundle.manifest.precision != "bf16"
            # Without it convolutions of every type leave the tensor cores (see provider_options). The few products that
            # a bundle in half precision has in float32, first and last layers, round their factors to as many bits as
            # float16 has: no more is lost than in all the others.
            rounds = tf32 or bundle.manifest.precision != "fp32"

            def opened(graph: str, *, capture: bool) -> Any:
                options = provider_options(device.index, stream, tf32=rounds, capture=capture, nhwc=nhwc)
                return _session(runtime, bundle, graph, library, options)

            def open_session(graph: str) -> Any:
                if graph != "step":
                    return opened(graph, capture=False)
                try:
                    return self._steps.over(opened(graph, capture=True), captures=True)
                except InputError as refused:
                    # It captures no graph of which a node computes on the CPU, and then opens no session either.
                    session = opened(graph, capture=False)
                    logging.getLogger("nuwaxl").warning(
                        "expected ONNX Runtime to capture the step graph of %s into a CUDA graph; found %s; steps are "
                        "launched kernel by kernel, which is slower at small batches",
                        bundle.path,
                        refused.found,
                    )
                    return self._steps.over(session, captures=False)

            super().__init__(
                bundle, device, stream, open_session, lambda number: run_options(runtime, number), self._steps.release
            )
        except BaseException:
            with suppress(RenderError):
                device.close()
            raise

    @property
    def name(self) -> str:
        """The GPU's model."""
        return self.device.name

    def close(self) -> None:
        """See Runner.close. Whatever thread this is: the kernels' memory is freed with the sessions, on its device."""
        with suppress(RenderError):
            self.device.enter()
        self._steps.close()
        super().close()


class OneThread:
    """Runs a session in one thread of its own: the provider keeps captured graphs by the thread that captured them,
    while every render has workers of its own, and costs are measured in others."""

    def __init__(self, device: CudaDevice) -> None:
        self._thread = ThreadPoolExecutor(1, f"nuwaxl cuda:{device.index} steps", initializer=device.enter)
        self._session: Any = None
        self._captures = False

    def over(self, session: Any, *, captures: bool) -> "OneThread":
        """The session to run."""
        self._session, self._captures = session, captures
        return self

    def io_binding(self) -> Any:
        """See onnxruntime.InferenceSession."""
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        """See onnxruntime.InferenceSession."""
        self._thread.submit(self._session.run_with_iobinding, binding, options).result()

    def release(self, numbers: Sequence[int]) -> None:
        """Free what was captured under these numbers, where there is a call for it: onnxruntime has one from 1.30 on,
        which the provider of 1.31 ignores. What is not freed stays to the end of the session."""
        release = getattr(self._session, "release_captured_graph", None)
        if self._captures and release is not None:
            for number in numbers:
                self._thread.submit(release, number).result()

    def close(self) -> None:
        """End the thread; the session goes with it."""
        self._thread.shutdown()
        self._session = None


def provider_options(index: int, stream: Stream, *, tf32: bool, capture: bool, nhwc: bool) -> dict[str, str]:
    """Options of the CUDA provider for one session (onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider).

    With `nhwc` convolutions keep the frame layout that the kernels have between them. Without `tf32` the provider takes
    none of cuDNN's plans that use tensor cores, in half precision either: it is many times slower then or, where cuDNN
    has no other plan, logs the error "No execution plans support the graph" and uses tensor cores after all.
    """
    return {
        "device_id": str(index),
        "user_compute_stream": str(stream.handle),
        "do_copy_in_default_stream": "1",
        "enable_cuda_graph": "1" if capture else "0",
        "use_tf32": "1" if tf32 else "0",
        "prefer_nhwc": "1" if nhwc else "0",
        # The next power of two would double what a large graph needs.
        "arena_extend_strategy": "kSameAsRequested",
    }


def run_options(runtime: Any, number: int | None) -> Any:
    """Options of one run: captured under a number, -1 for never; the stream is not waited for at its end."""
    options = runtime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", "-1" if number is None else str(number))
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return options


def check_provider(runtime: Any) -> None:
    """Refuse an ONNX Runtime without the CUDA provider.

    Raises:
        InputError: naming those it has.
    """
    if hasattr(runtime, "preload_dlls"):  # 1.21 and later: CUDA and cuDNN of NVIDIA's wheels
        runtime.preload_dlls()
    if PROVIDER not in runtime.get_available_providers():
        raise InputError(
            expected=f"an onnxruntime with {PROVIDER}",
            found=f"onnxruntime {runtime.__version__} with {', '.join(runtime.get_available_providers())}",
            fix=_INSTALL,
        )


def _session(runtime: Any, bundle: Bundle, graph: str, library: KernelLibrary, provider: dict[str, str]) -> Any:
    options = session_options(runtime)
    options.intra_op_num_threads = 1  # for the shapes' arithmetic, which stays on the CPU
    options.inter_op_num_threads = 1
    library.register(options, graph)
    path = bundle.file(graph)
    try:
        session = runtime.InferenceSession(str(path), sess_options=options, providers=[(PROVIDER, provider)])
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise InputError(
            expected=f"a graph that onnxruntime {runtime.__version__} can load on CUDA at {path}",
            found=" ".join(str(error).split()),
            fix="install another onnxruntime-gpu, or export the bundle again with --sm",
        ) from error
    if session.get_providers()[0] != PROVIDER:  # it says so only in its log, and goes on without
        raise InputError(
            expected=f"{PROVIDER} to start", found=f"{', '.join(session.get_providers())} instead", fix=_INSTALL
        )
    return session
