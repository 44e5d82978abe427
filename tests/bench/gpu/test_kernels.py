"""The kernels' part of `make gpu`: against their roofline, and what is left of it where one fails."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from nuwaxl.bench.gpu import kernels, piece  # noqa: E402
from nuwaxl.bench.gpu.gates import gates  # noqa: E402
from nuwaxl.bench.gpu.piece import Piece  # noqa: E402
from nuwaxl.errors import NuwaxlError  # noqa: E402
from nuwaxl.kernels import bench, ops  # noqa: E402


def test_kernels_are_measured_against_their_roofline() -> None:
    found = kernels.measure("cpu", tiny=True)
    names = {row["kernel"] for row in found["rows"]}
    assert names >= {*kernels.GATED, "attention backward", "group norm + SiLU", "sampler update"}
    for row in found["rows"]:
        assert row["us"] > 0
        compute = row["tflop_s"] / found["figures"]["matmul_tflop_s"]
        assert row["of_roof"] == pytest.approx(max(row["of_copy"], compute))


def test_a_kernel_that_fails_leaves_the_others_their_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such\ninstruction")

    monkeypatch.setattr(ops, "temporal_conv", broken)
    told: list[dict[str, Any]] = []
    with pytest.raises(NuwaxlError, match=r"found errors of conv \+ injection;"):
        kernels.measure("cpu", tiny=True, news=lambda found: told.append(found))
    rows = told[-1]["rows"]
    assert [len(found["rows"]) for found in told] == list(range(1, len(rows) + 1))
    errors = [row for row in rows if "error" in row]
    assert {row["error"] for row in errors} == {"RuntimeError: no such instruction"}
    assert len(errors) == 4  # two sizes, two batches
    assert all(row["of_roof"] > 0 for row in rows if row not in errors)
    gate = next(gate for gate in gates({"kernels": told[-1]}, []) if gate.name.startswith("conv"))
    assert (gate.passed, gate.note) == (None, "it failed")
    assert "RuntimeError: no such instruction" in bench.table({**told[-1]["figures"], "rows": rows})


def test_kernels_after_one_that_lost_the_gpu_are_measured_by_another_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("illegal address")

    began: list[list[str]] = []
    # Nothing would come after it; here the call returns, and the test is the other process.
    monkeypatch.setattr("os.execv", lambda program, command: began.append(command))
    monkeypatch.setattr(bench, "gpu_is_lost", lambda: True)
    first = Piece("kernels", "cpu", True, str(tmp_path), 60.0)
    with monkeypatch.context() as failing:
        failing.setattr(ops, "temporal_conv", broken)
        assert piece.main(first.command()[-1]) == 0
    rows = json.loads(first.result.read_text())["rows"]
    assert [("error" in row, row["kernel"]) for row in rows[-2:]] == [
        (False, "attention backward"),
        (True, "conv + injection"),
    ]
    (command,) = began
    # Now it would work, but its other sizes are left out.
    with pytest.raises(NuwaxlError, match=r"found errors of conv \+ injection;"):
        piece.main(command[-1])
    found = json.loads(first.result.read_text())
    assert found["rows"][: len(rows)] == rows
    whole = kernels.measure("cpu", tiny=True)
    sizes = [[(row["kernel"], row["b"], row["c"]) for row in each["rows"]] for each in (found, whole)]
    assert sizes[0] == sizes[1]
    errors = [row for row in found["rows"] if "error" in row]
    assert {row["kernel"] for row in errors} == {"conv + injection"}
    assert [row["error"].partition(":")[0] for row in errors] == ["RuntimeError", *["not tried"] * 3]


@pytest.mark.parametrize("lost", [False, True])
def test_a_gpu_that_refuses_everything_is_lost(monkeypatch: pytest.MonkeyPatch, lost: bool) -> None:
    def synchronize() -> None:
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert not bench.gpu_is_lost(), "there is none"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert bench.gpu_is_lost() == lost
