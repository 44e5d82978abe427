"""The command: which pieces run and for how long, what a run adds to the one before, its exit status."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from nuwaxl.bench.gpu import cli, report  # noqa: E402

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("parts", ["tests,kernels,parity,ours,eager,compile", "compile"])
def test_what_takes_all_the_time_that_is_left_comes_last(parts: str) -> None:
    arguments = cli._parser().parse_args(["--parts", parts, "--budget", "7000"])
    pieces = cli._pieces(arguments, arguments.sizes, tiny=False)
    assert [each.name for each in pieces[-2:]] == ["compile-max-autotune-256", "compile-max-autotune-128"]
    assert {each.most_s for each in pieces[-2:]} == {7000.0}
    others = {each.name: each.most_s for each in pieces[:-2]}
    assert max(others.values()) < 500
    if parts == "compile":
        assert list(others) == ["compile-reduce-overhead-256", "compile-reduce-overhead-128"]
    else:
        assert {"ours-torch-cuda-0-256", "ours-torch-cuda-0-eager-128", "eager-256"} < set(others)
    on_onnx = cli._parser().parse_args(["--devices", "cuda:0", "--parts", "ours", "--sizes", "256"])
    assert [each.name for each in cli._pieces(on_onnx, on_onnx.sizes, tiny=False)] == ["ours-cuda-0-256"]


def test_a_run_adds_to_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"state": "done", "seconds": 1.0, "error": ""}
    monkeypatch.setattr(cli, "_run", lambda each, deadline: {**answers, "figures": {"passed": 1}})
    command = ["--device", "cpu", "--out", str(tmp_path)]
    assert cli.main([*command, "--parts", "kernels"]) == 0
    later = [
        {"state": cli.NOT_BEGUN, "seconds": 0.0},
        {"state": "stopped", "seconds": 5.0, "error": "after 5 s", "figures": {"mode": "x"}},
        {"state": "failed", "seconds": 5.0, "error": "broken", "figures": {}},
    ]
    for again in later:
        monkeypatch.setattr(cli, "_run", lambda each, deadline, again=again: again)
        assert cli.main([*command, "--parts", "kernels,parity"]) == 1
        pieces = report.read(tmp_path)["pieces"]
        assert (pieces["kernels"]["state"], pieces["kernels"]["figures"]) == ("done", {"passed": 1})
        assert pieces["kernels"]["error"].startswith(f"not again by a later run: {again['state']}")
    assert (pieces["parity"]["state"], pieces["parity"]["figures"]) == ("stopped", {"mode": "x"})


def test_a_missed_gate_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_machine", lambda tiny: {"device": "a GPU"})
    figures = {"passed": 1, "failed": 0, "skipped": 0, "exit_status": 0}
    monkeypatch.setattr(cli, "_run", lambda each, deadline: {"state": "done", "seconds": 1.0, "figures": figures})
    command = ["--out", str(tmp_path), "--parts", "tests"]
    assert cli.main(command) == 0
    figures["failed"] = 1
    assert cli.main(command) == 1


def test_figures_of_another_gpu_are_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_run", lambda each, deadline: {"state": "done", "seconds": 1.0})
    for device, status in (("NVIDIA H100", 0), ("NVIDIA H100", 0), ("NVIDIA H200", 2)):
        monkeypatch.setattr(cli, "_machine", lambda tiny, device=device: {"device": device})
        assert cli.main(["--out", str(tmp_path), "--parts", "parity"]) == status
    assert "expected figures of NVIDIA H200 in" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing only where it is")
def test_without_a_gpu_one_line_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a GPU that torch can use; found none by torch" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing only where it is")
def test_make_gpu_without_a_gpu_is_one_line_and_builds_nothing() -> None:
    command = ["make", "--no-print-directory", "gpu", f"GPU_PYTHON={sys.executable}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode != 0
    assert result.stdout == ""
    assert result.stderr.startswith("make gpu: expected a GPU that torch can use; found none by")
    assert "Building" not in result.stderr


@pytest.mark.slow
def test_all_of_it_runs_on_the_cpu_at_a_tiny_size(tmp_path: Path) -> None:
    # Every piece in its own process, the opponent through torch.compile too; the figures mean nothing.
    command = [sys.executable, "-m", "nuwaxl.bench.gpu", "--device", "cpu", "--out", str(tmp_path), "--budget", "3000"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    document = json.loads((tmp_path / report.JSON_FILE).read_text())
    assert {name: piece["state"] for name, piece in document["pieces"].items()} == dict.fromkeys(
        ["tests", "kernels", "parity", "ours-torch-cpu-8", "compile-default-8", "eager-8"], "done"
    )
    assert document["pieces"]["tests"]["figures"]["failed"] == 0
    compiled = document["pieces"]["compile-default-8"]["figures"]
    assert compiled["batch_sizes"] == [2, 1]
    assert compiled["wall_s"] > 0
    assert compiled["filled_wall_s"] > 0
    assert compiled["wall_compiled"] == 0
