"""The gate at export, over the fakes of CUDA and TensorRT."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from nuwaxl.engine.acceptance import PlanRefused  # noqa: E402
from nuwaxl.engine.bundle import Bundle  # noqa: E402
from nuwaxl.engine.runners.device.cuda import CudaDevice  # noqa: E402
from nuwaxl.export.tensorrt import gate as gate_module  # noqa: E402
from nuwaxl.export.tensorrt.builder import Built  # noqa: E402
from nuwaxl.export.tensorrt.gate import BundleGate  # noqa: E402
from nuwaxl.export.tensorrt.plans import Options, add_plans  # noqa: E402

from ...engine.conftest import write_tiny_bundle  # noqa: E402
from ...engine.fake_cuda import FakeCuda, Status  # noqa: E402
from ...engine.fake_tensorrt import FakeTensorRT, alive_at_close, plan_bytes  # noqa: E402

OPTIONS = Options("tensorrt-rtx", "1.7.1", (89, 90), (1, 2))


class Machine:
    def __init__(self) -> None:
        self.cuda = FakeCuda()
        self.trt = FakeTensorRT(self.cuda, "1.7.1", capturable=True)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A GPU of SM 90 with TensorRT-RTX."""
    made = Machine()
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gate_module, "CudaDevice", lambda index: CudaDevice(index, made.cuda))
    monkeypatch.setattr(gate_module, "load_tensorrt", lambda runtime: made.trt)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    write_tiny_bundle(path)
    return path


def make(request: Any, out: Path, progress: Any) -> Built:
    out.write_bytes(plan_bytes(request.graph, request.batches))
    return Built(1.0, 1)


def test_plans_that_a_gpu_here_accepts_are_written_with_its_name(machine: Machine, folder: Path) -> None:
    made = add_plans(folder, OPTIONS, make=make, gate=BundleGate())
    assert {plan.accepted_on for plan in made} == {("NVIDIA Fake",)}
    assert {batch for _, batch in machine.trt.executed} == {1, 2}
    assert not machine.cuda.live


def test_plans_in_bfloat16_which_no_cpu_computes_are_compared_with_its_emulation(
    machine: Machine, folder: Path
) -> None:
    # The graphs stay in float32, which the fake can run; the emulation of others: tests/export/test_precision.py.
    manifest = Bundle.open(folder).manifest
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"fp32"', '"bf16"'))
    assert Bundle.open(folder).manifest == replace(manifest, precision="bf16")
    made = add_plans(folder, OPTIONS, make=make, gate=BundleGate())
    assert {plan.accepted_on for plan in made} == {("NVIDIA Fake",)}
    assert len(machine.trt.executed) > 10

    def wrong(graph: str, batch: int, outputs: dict[str, np.ndarray]) -> None:
        if graph == "step":
            outputs["x_next"][batch - 1] *= 1.2

    machine.trt.change = wrong
    with pytest.raises(PlanRefused, match="graph step, output x_next, batch 1, row 0, against ONNX Runtime"):
        add_plans(folder, replace(OPTIONS, sm=(90,)), make=make, gate=BundleGate())


def test_a_wrong_row_at_a_larger_batch_keeps_all_plans_out(
    machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(graph: str, batch: int, outputs: dict[str, np.ndarray]) -> None:
        if graph == "decode" and batch == 2:
            outputs["video"][1] ^= 64

    machine.trt.change = wrong
    before = (folder / "manifest.json").read_bytes()
    left = alive_at_close(machine.trt, monkeypatch)
    with pytest.raises(PlanRefused, match="graph decode, output video, batch 2, row 1"):
        add_plans(folder, OPTIONS, make=make, gate=BundleGate())
    assert (folder / "manifest.json").read_bytes() == before
    assert not (folder / "plans").exists()
    assert not machine.cuda.live
    assert set(left) == {0}, "engines and contexts go before the memory that they point to"


@pytest.mark.parametrize("why", ["no driver", "another GPU"])
def test_without_a_gpu_that_can_run_them_plans_are_written_as_unverified_and_verified_later(
    machine: Machine, folder: Path, why: str
) -> None:
    if why == "no driver":
        machine.cuda.fail["cudaGetDeviceCount"] = Status.cudaErrorInsufficientDriver, 0
    else:
        machine.cuda.capability = (8, 0)
    made = add_plans(folder, OPTIONS, make=make, gate=BundleGate())
    assert {plan.accepted_on for plan in made} == {()}
    assert machine.trt.executed == []

    machine.cuda.fail.clear()
    machine.cuda.capability = (9, 0)
    files = {path: path.stat().st_mtime_ns for path in (folder / "plans").iterdir()}
    add_plans(folder, OPTIONS, make=make, gate=BundleGate())
    assert {plan.accepted_on for plan in Bundle.open(folder).manifest.plans} == {("NVIDIA Fake",)}
    assert {path: path.stat().st_mtime_ns for path in (folder / "plans").iterdir()} == files, "nothing is built again"


def test_a_plan_accepted_on_one_gpu_is_verified_once_on_each_other_of_the_same_generation(
    machine: Machine, folder: Path
) -> None:
    made = add_plans(folder, OPTIONS, make=make, gate=BundleGate())
    compared = len(machine.trt.executed)
    assert add_plans(folder, OPTIONS, make=make, gate=BundleGate()) == made
    assert len(machine.trt.executed) == compared, "this GPU has accepted them before"

    machine.cuda.name = "NVIDIA Another"
    for _ in range(2):
        add_plans(folder, OPTIONS, make=make, gate=BundleGate())
        accepted = {plan.accepted_on for plan in Bundle.open(folder).manifest.plans}
        assert accepted == {("NVIDIA Another", "NVIDIA Fake")}
        assert len(machine.trt.executed) == 2 * compared

    machine.trt.change = lambda graph, batch, outputs: [array.fill(0) for array in outputs.values()]
    machine.cuda.name = "NVIDIA Third"
    with pytest.raises(PlanRefused):
        add_plans(folder, OPTIONS, make=make, gate=BundleGate())


def test_an_unverified_plan_that_turns_out_wrong_is_refused(machine: Machine, folder: Path) -> None:
    add_plans(folder, OPTIONS, make=make)
    copy = shutil.copytree(folder, folder.with_name("copy"))

    def wrong(graph: str, batch: int, outputs: dict[str, np.ndarray]) -> None:
        for array in outputs.values():
            array[...] = 0

    machine.trt.change = wrong
    with pytest.raises(PlanRefused):
        add_plans(copy, OPTIONS, make=make, gate=BundleGate())
