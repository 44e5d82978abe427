"""The GPU tests as `make gpu` runs them: those that fail, lose the GPU or do not end leave the others."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from nuwaxl.bench.gpu import tests
from nuwaxl.bench.gpu.gates import gates

ROOT = Path(__file__).parents[3]


def test_gpu_tests_that_cannot_be_imported_leave_the_others(tmp_path: Path) -> None:
    (tmp_path / "test_broken.py").write_text("import no_such_package\n")
    (tmp_path / "test_good.py").write_text("def test_good() -> None: ...\n")
    found = tests.measure(tmp_path, 600.0, "not slow", str(tmp_path))
    assert found["figures"] | {"log": ""} == {"passed": 1, "failed": 1, "skipped": 0, "exit_status": 1, "log": ""}


def test_gpu_tests_after_one_that_lost_the_gpu_run_in_another_process(tmp_path: Path) -> None:
    # The repository's own hooks, over a torch whose GPU is lost for good by two of the tests.
    (tmp_path / "conftest.py").write_text(
        f"""
import sys, types
from importlib.util import module_from_spec, spec_from_file_location

lost = []

def synchronize():
    if lost:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

cuda = types.SimpleNamespace(is_available=lambda: True, synchronize=synchronize, lost=lost)
sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)
spec = spec_from_file_location("shared", {str(ROOT / "tests" / "conftest.py")!r})
shared = module_from_spec(spec)
spec.loader.exec_module(shared)
pytest_runtest_setup, pytest_runtest_makereport = shared.pytest_runtest_setup, shared.pytest_runtest_makereport
"""
    )
    (tmp_path / "test_kernels.py").write_text(
        """
import pytest, torch

@pytest.mark.gpu
@pytest.mark.parametrize("number", range(6))
def test_kernel(number):
    if number in (1, 3):
        torch.cuda.lost.append(number)
    assert number != 4
    torch.cuda.synchronize()

def test_elsewhere(): ...
"""
    )
    found = tests.measure(tmp_path, 600.0, "gpu or not gpu", str(tmp_path))
    counts = {name: found["figures"][name] for name in ("passed", "failed", "skipped", "exit_status")}
    assert counts == {"passed": 4, "failed": 3, "skipped": 0, "exit_status": 1}
    assert [row["failed"].rpartition("::")[2] for row in found["rows"]] == [f"test_kernel[{n}]" for n in (1, 3, 4)]


@pytest.mark.slow
def test_gpu_tests_that_do_not_end_leave_the_others(tmp_path: Path) -> None:
    (tmp_path / "test_good.py").write_text("def test_good() -> None: ...\n")
    (tmp_path / "test_wait.py").write_text("import time\ndef test_wait() -> None: time.sleep(100)\n")
    began = time.monotonic()
    found = tests.measure(tmp_path, 20.0, "not slow", str(tmp_path))
    assert time.monotonic() - began < 40
    assert found["figures"]["passed"] == 1
    assert found["figures"]["exit_status"] not in tests.WHOLE
    assert gates({"tests": found}, [])[0].found is None, "nobody knows of the rest"


@pytest.mark.slow
@pytest.mark.parametrize("absent", [{"av"}, {"av", "onnx", "onnxruntime", "onnxscript", "diffusers", "transformers"}])
def test_the_gpu_tests_are_found_without_what_a_gpu_machine_may_lack(tmp_path: Path, absent: set[str]) -> None:
    # tests/conftest.py leaves out what reads or writes videos there, or is about ONNX.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {absent!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, package=None: None if name in {absent!r} else found(name, package)\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--collect-only", "tests"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert ("test_torch_runner.py" in result.stdout) == ("onnx" not in absent)
    assert "test_temporal_attention.py" in result.stdout
