"""What every test folder shares: where gpu tests run, one that loses its GPU, and how hypothesis searches."""

import os
import signal
import sys
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples on every run, so that a failure seen once is seen again. No deadline: machines are shared.
settings.register_profile("nuwaxl", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nuwaxl")

# Started in the background, a process ignores SIGINT and so do those that it starts: tests send it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Triton reads this when it is imported, which any test may do before those of the kernels: it interprets on the CPU.
_HAS_GPU = Path("/dev/nvidiactl").exists()
if not _HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

# What reads or writes video files; a GPU machine may have no PyAV, and its tests must still be found.
_OF_VIDEOS = ["bench/test_cli.py", "bench/test_story.py", "engine/test_cli.py", "engine/test_jobs.py"]
_OF_VIDEOS += ["engine/test_mp4.py", "train"]
# What is about bundles of ONNX graphs; `make gpu` does without onnx, too.
_OF_ONNX = ["bench", "engine"]
collect_ignore = [] if find_spec("av") else _OF_VIDEOS
collect_ignore += [] if find_spec("onnx") and find_spec("onnxruntime") else _OF_ONNX


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu on a machine without an NVIDIA device."""
    if _HAS_GPU:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


# After some errors, an illegal address among them, CUDA refuses everything else that a process asks of it.
_lost_in: list[str] = []


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip gpu tests of a process that has lost its GPU; `make gpu` runs them in another one."""
    if _lost_in and item.get_closest_marker("gpu"):
        from nuwaxl.bench.gpu.tests import LOST

        pytest.skip(f"{LOST} {_lost_in[0]}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notice a gpu test that lost its GPU."""
    report = yield
    if report.failed and item.get_closest_marker("gpu") and not _lost_in and _gpu_is_lost():
        _lost_in.append(item.nodeid)
    return report


def _gpu_is_lost() -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
