"""The layering of the rooms: the engine runs bare, and nobody imports upwards."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import nuwaxl.engine

FORBIDDEN = ("torch", "triton", "nuwaxl.train", "nuwaxl.export", "nuwaxl.bench", "nuwaxl.kernels")
ROOT = Path(__file__).parents[2]

# Makes the forbidden modules unimportable, even where they are installed, then imports what it is told to.
BARE_IMPORT = f"""
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if any(name == forbidden or name.startswith(forbidden + ".") for forbidden in {FORBIDDEN!r}):
            raise ModuleNotFoundError(f"{{name}} is not to be imported by the engine", name=name)

sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    importlib.import_module(name)
print("imported", len(sys.argv) - 1)
"""


def import_bare(*names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BARE_IMPORT, *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def engine_modules() -> list[str]:
    """Every module of the engine, runners included; the CUDA ones only need to exist where CUDA does."""
    found = pkgutil.walk_packages(nuwaxl.engine.__path__, "nuwaxl.engine.")
    return ["nuwaxl.engine", *(module.name for module in found)]


def test_every_engine_module_imports_without_torch_and_the_other_rooms() -> None:
    modules = engine_modules()
    assert len(modules) > 10
    result = import_bare(*modules)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["imported", str(len(modules))]


def test_the_engine_itself_does_not_import_an_inference_runtime() -> None:
    check = "import sys, nuwaxl.engine; print('onnxruntime' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=120, check=False)
    assert result.stdout.split() == ["False"], result.stderr


@pytest.mark.parametrize("name", ["torch", "nuwaxl.train"])
def test_the_bare_import_would_notice_a_forbidden_module(name: str) -> None:
    result = import_bare(name)
    assert result.returncode != 0
    assert f"{name} is not to be imported by the engine" in result.stderr


def test_the_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout
