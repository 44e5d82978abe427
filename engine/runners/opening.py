"""Runners for the workers of a device list, on this machine."""

from contextlib import ExitStack
from dataclasses import replace

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.devices import Worker
from nuwaxl.engine.plans import RUNTIMES
from nuwaxl.engine.runners.base import Runner
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner
from nuwaxl.engine.runners.plugins import plugin_for


def open_local(
    bundle: Bundle, workers: tuple[Worker, ...], *, tf32: bool = False
) -> tuple[tuple[Worker, ...], tuple[Runner, ...]]:
    """One runner a worker, and the workers with the names of the processors they turned out to have.

    With `tf32` GPUs may round the factors of float32 products (see CudaRunner).

    Where one cannot be opened, those that were are closed.

    Raises:
        InputError: a device that this machine does not have, or no inference runtime for it.
    """
    opened: list[tuple[Worker, Runner]] = []
    with ExitStack() as undo:
        for worker in workers:
            opened.append(_open(bundle, worker, tf32))
            undo.callback(opened[-1][1].close)
        undo.pop_all()
    return tuple(worker for worker, _ in opened), tuple(runner for _, runner in opened)


def _open(bundle: Bundle, worker: Worker, tf32: bool) -> tuple[Worker, Runner]:
    if worker.plugin is not None:
        return worker, plugin_for(worker.plugin).open_runner(bundle, worker.plugin.partition(":")[2], worker.threads)
    if worker.kind == "cpu":
        return worker, OnnxRuntimeRunner(bundle, worker)
    if worker.kind in RUNTIMES:
        # The packages under it are extras.
        from nuwaxl.engine.runners.tensorrt import TensorRTRunner

        on_plans = TensorRTRunner(bundle, worker)
        return replace(worker, processor=f"{on_plans.device_name}, {on_plans.runtime}"), on_plans
    # The package under it is an extra.
    from nuwaxl.engine.runners.cuda import CudaRunner

    runner = CudaRunner(bundle, worker, tf32=tf32)
    rounded = tf32 and bundle.manifest.precision == "fp32"  # in half precision it changes nothing
    worker = replace(worker, processor=f"{runner.name}{' with TF32' if tf32 else ''}")
    return replace(worker, precision="tf32" if rounded else None), runner
