"""Plans that nobody verified on this GPU are, before they render anything; and which errors are too large for which
precision."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nuwaxl.engine.acceptance import Accepted, Arrays, PlanRefused
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.bundle_schema import Plan, PrecisionName
from nuwaxl.engine.runners import tensorrt_acceptance
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner
from nuwaxl.engine.runners.tensorrt_acceptance import Reference, compare
from nuwaxl.errors import InputError

from .fake_tensorrt import alive_at_close
from .tensorrt_machine import BATCHES, GPU, Machine

PLAN = Plan("step", "", "tensorrt", "11.4.0", (90,), (1, 2), (), "", "", ())


@pytest.fixture(autouse=True)
def own_acceptances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was accepted is kept in a folder of the test's."""
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "cache"))


def wrong_rows(graph: str, batch: int, outputs: dict[str, np.ndarray]) -> None:
    """Wrong in the second row of a batch of two, as was seen of TensorRT."""
    if graph == "step" and batch == 2:
        outputs["x_next"][1] *= 1.05


def test_a_plan_that_nobody_verified_is_compared_before_it_is_used_and_that_is_kept(own_bundle: Path) -> None:
    machine = Machine(own_bundle, "tensorrt-rtx", accepted_on=())
    machine.runner().close()
    compared = len(machine.trt.executed)
    assert {graph for graph, _ in machine.trt.executed} == {"prepare", "step", "decode"}
    assert {batch for _, batch in machine.trt.executed} == set(BATCHES)
    runner = machine.runner()
    assert len(machine.trt.executed) == compared, "it was accepted before"
    runner.encode_text(np.zeros((1, 3), dtype=np.int64))
    assert len(machine.trt.executed) > compared + 1


def test_what_the_comparison_took_is_given_back(own_bundle: Path) -> None:
    machine = Machine(own_bundle, accepted_on=())
    runner = machine.runner()
    assert machine.trt.executed
    assert "exec" not in machine.cuda.live.values()
    assert not machine.trt.bound & machine.cuda.live.keys()
    assert len(machine.trt.alive) == 3, "the engines of the loop, and no context"
    runner.close()


def test_a_plan_that_was_refused_is_not_run_the_next_time(own_bundle: Path) -> None:
    machine = Machine(own_bundle, accepted_on=())
    runner = machine.runner()
    machine.trt.change = lambda graph, batch, outputs: [array.fill(0) for array in outputs.values()]
    live = []
    for _ in range(3):
        with pytest.raises(PlanRefused, match="graph text"):
            runner.encode_text(np.zeros((1, 3), dtype=np.int64))
        assert len(machine.trt.alive) == 3
        live.append(len(machine.cuda.live))
    assert len(set(live)) == 1, "its memory is given back"
    runner.close()


@pytest.mark.parametrize("accepted_on", [(), ("NVIDIA Other",)])
def test_a_plan_with_wrong_rows_is_refused_every_time_and_frees_the_gpu(
    own_bundle: Path, accepted_on: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(own_bundle, accepted_on=accepted_on)
    machine.trt.change = wrong_rows
    left = alive_at_close(machine.trt, monkeypatch)
    for _ in range(2):
        with pytest.raises(PlanRefused, match="graph step, output x_next, batch 2, row 1"):
            machine.runner()
        assert not machine.cuda.live
        assert left.pop() == 0, "engines and contexts go before the memory that they point to"
    machine.trt.change = lambda *_: None
    machine.runner()


def test_a_plan_that_this_gpu_among_others_accepted_is_not_compared_again(own_bundle: Path) -> None:
    machine = Machine(own_bundle, accepted_on=("NVIDIA Another", GPU))
    machine.runner()
    assert machine.trt.executed == []


def test_what_was_accepted_on_one_gpu_is_not_on_another(own_bundle: Path) -> None:
    machine = Machine(own_bundle, accepted_on=())
    machine.runner().close()
    before = len(machine.trt.executed)
    bundle, plan = Bundle.open(own_bundle), machine.plans[0]
    runs: list[int] = []

    def execute(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        runs.append(1)
        raise PlanRefused("compared")

    with pytest.raises(PlanRefused, match="compared"):
        tensorrt_acceptance.ensure_accepted(
            bundle, plan, "NVIDIA Other", execute, tensorrt_acceptance.Reference(bundle)
        )  # type: ignore[arg-type]
    assert runs == [1]
    assert len(machine.trt.executed) == before


def test_an_unverified_plan_without_onnx_runtime_says_what_is_missing(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> OnnxRuntimeRunner:
        raise InputError(expected="onnxruntime", found="none", fix="install it")

    machine = Machine(own_bundle, accepted_on=())
    monkeypatch.setattr(tensorrt_acceptance, "OnnxRuntimeRunner", missing)
    with pytest.raises(InputError, match=r"onnxruntime, to verify the plan of .*; found none; install it"):
        machine.runner()


def test_an_unverified_plan_of_a_bfloat16_bundle_is_not_used(own_bundle: Path) -> None:
    machine = Machine(own_bundle, accepted_on=())
    opened = Bundle.open(own_bundle)
    bundle = replace(opened, manifest=replace(opened.manifest, precision="bf16"))

    def execute(_: object) -> dict[str, np.ndarray]:
        raise AssertionError("there is nothing to compare it with")

    with pytest.raises(
        InputError,
        match=r"to verify the plan of .*; found bf16 in .*; run nuwaxl-export .* --batches 1,2, on this",
    ):
        tensorrt_acceptance.ensure_accepted(
            bundle, machine.plans[0], "NVIDIA Fake", execute, tensorrt_acceptance.Reference(bundle)
        )


def compared(folder: Path, precision: PrecisionName, error: float, least: int) -> Accepted:
    """What is found of a plan of a bundle in this precision, all whose answers at this batch or a larger one are too
    large by a factor."""
    opened = Bundle.open(folder)
    reference = Reference(opened)

    def execute(inputs: Mapping[str, np.ndarray]) -> Arrays:
        factor = np.float32(1 + error * (len(inputs["x"]) >= least))
        return {name: array * factor for name, array in reference("step", inputs).items()}

    return compare(replace(opened, manifest=replace(opened.manifest, precision=precision)), PLAN, execute, reference)


@pytest.mark.parametrize(
    ("precision", "small", "large"), [("fp32", 5e-4, 2e-3), ("fp16", 1e-2, 4e-2), ("bf16", 5e-2, 0.2)]
)
def test_the_distance_from_onnx_runtime_is_judged_by_the_precision(
    tiny_bundle: Path, precision: PrecisionName, small: float, large: float
) -> None:
    assert compared(tiny_bundle, precision, small, least=1).reference == pytest.approx(small, rel=0.05)
    with pytest.raises(PlanRefused, match=r"graph step, output x_next, batch 1, row 0, against ONNX Runtime"):
        compared(tiny_bundle, precision, large, least=1)


@pytest.mark.parametrize(
    ("precision", "small", "large"), [("fp32", 5e-5, 2e-4), ("fp16", 2e-3, 1e-2), ("bf16", 2e-2, 6e-2)]
)
def test_the_distance_of_a_row_from_itself_in_another_batch_is_judged_more_strictly(
    tiny_bundle: Path, precision: PrecisionName, small: float, large: float
) -> None:
    assert compared(tiny_bundle, precision, small, least=2).rows == pytest.approx(small, rel=0.05)
    with pytest.raises(PlanRefused, match=r"batch 2, row 0, against batch 1"):
        compared(tiny_bundle, precision, large, least=2)
