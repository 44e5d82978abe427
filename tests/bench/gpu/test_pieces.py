"""A piece in its own process: one that ends badly keeps what it found, and it needs no ONNX."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from nuwaxl.bench.gpu import cli  # noqa: E402
from nuwaxl.bench.gpu.piece import Piece  # noqa: E402


def test_the_pieces_need_no_onnx() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(('onnx', 'onnxscript', 'onnxruntime', 'av'))\n"
        "import nuwaxl.bench.gpu.cli, nuwaxl.bench.gpu.piece"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


class Fails(Piece):
    """Writes something, then waits, with a process of its own, or dies."""

    def command(self) -> list[str]:
        child = "import subprocess; print(subprocess.Popen(['sleep', '100']).pid, flush=True)"
        wait = f"{child}; import time; time.sleep(100)" if self.mode == "wait" else "raise ValueError('broken')"
        write = f"open({str(self.result)!r}, 'w').write('{{\"figures\": {{\"kept\": 1}}}}')"
        return [sys.executable, "-c", f"{write}\n{wait}"]


@pytest.mark.parametrize(
    ("mode", "state", "error"), [("wait", "stopped", "after 2 s"), ("die", "failed", "ValueError: broken")]
)
def test_a_piece_that_ends_badly_keeps_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, state: str, error: str
) -> None:
    monkeypatch.setattr(cli, "_LEAST_S", 1)
    monkeypatch.setattr(cli, "Piece", Fails)
    piece = Fails("ours", "cpu", True, str(tmp_path), 2.0, pixels=8, mode=mode)
    entry = cli._run(piece, time.monotonic() + 100)
    assert (entry["state"], entry["error"], entry["figures"]) == (state, error, {"kept": 1})
    if mode == "wait":
        child = Path(f"/proc/{int(piece.result.with_suffix('.log').read_text())}/status")
        deadline = time.monotonic() + 30
        while child.exists() and "State:\tZ" not in child.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert time.monotonic() < deadline, "its process has ended, too"


def test_all_processes_of_torch_compiles_piece_take_the_same_ptxas(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiles, renders = (Piece(kind, "cuda:0", False, str(tmp_path), 90.0) for kind in ("compile", "ours"))
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.delenv("TRITON_PTXAS_PATH", raising=False)
    assert "TRITON_PTXAS_PATH" not in cli._environment(compiles)
    ptxas = tmp_path / "bin" / "ptxas"
    ptxas.parent.mkdir()
    ptxas.touch(mode=0o755)
    assert cli._environment(compiles)["TRITON_PTXAS_PATH"] == str(ptxas)
    assert "TRITON_PTXAS_PATH" not in cli._environment(renders), "ours is compiled as a user's is"
    monkeypatch.setenv("TRITON_PTXAS_PATH", "another")
    assert cli._environment(compiles)["TRITON_PTXAS_PATH"] == "another"


def test_a_piece_that_has_no_time_left_is_not_begun(tmp_path: Path) -> None:
    piece = Piece("kernels", "cpu", True, str(tmp_path), 90.0)
    assert cli._run(piece, time.monotonic() + 1)["state"] == "no time left"
