"""The gate of plans, with executors that are wrong in every way a runtime was seen to be, and with right ones."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nuwaxl.engine.acceptance import TOLERANCES, Accepted, PlanRefused, accept
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.devices import Worker
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner
from nuwaxl.engine.samples import Samples

Arrays = dict[str, np.ndarray]
BUCKETS = (1, 2, 4)
TOLERANCE = TOLERANCES["fp32"]


def sample(batch: int) -> Arrays:
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((batch, 3, 5)).astype(np.float32)}


def right(inputs: Mapping[str, np.ndarray]) -> Arrays:
    x = inputs["x"]
    return {"y": np.tanh(x) + x[:, :1], "pixels": np.clip(128 + 50 * x, 0, 255).round().astype(np.uint8)}


def run(candidate: Callable[[Mapping[str, Any]], Any], buckets: tuple[int, ...] = BUCKETS) -> Accepted:
    return accept("step", buckets, sample, right, candidate, TOLERANCE)


def wrong(change: Callable[[Arrays, int], None]) -> Callable[[Mapping[str, np.ndarray]], Arrays]:
    """An executor whose answers are changed, given the batch."""

    def executor(inputs: Mapping[str, np.ndarray]) -> Arrays:
        outputs = right(inputs)
        change(outputs, len(inputs["x"]))
        return outputs

    return executor


def last_row_at_four(outputs: Arrays, batch: int) -> None:
    if batch == 4:
        outputs["y"][3] *= 1.01


def second_row_is_the_first(outputs: Arrays, batch: int) -> None:
    if batch > 1:
        outputs["y"][1] = outputs["y"][0]


def everything_a_little(outputs: Arrays, batch: int) -> None:
    outputs["y"] *= 1.002


def larger_batches_a_little(outputs: Arrays, batch: int) -> None:
    if batch > 1:
        outputs["y"] *= 1.0005  # within the tolerance of the reference, not of the rows


def nan_at_two(outputs: Arrays, batch: int) -> None:
    if batch == 2:
        outputs["y"][1, 0, 0] = np.nan


def pixels_off(outputs: Arrays, batch: int) -> None:
    outputs["pixels"][-1, 0, 0] ^= 16


def many_pixels_by_one(outputs: Arrays, batch: int) -> None:
    outputs["pixels"] ^= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (last_row_at_four, r"output y, batch 4, row 3, against ONNX Runtime: relative error 1\.00e-02"),
        (second_row_is_the_first, "output y, batch 2, row 1, against ONNX Runtime"),
        (everything_a_little, "batch 1, row 0, against ONNX Runtime"),
        (larger_batches_a_little, "batch 2, row 0, against batch 1"),
        (nan_at_two, "output y, batch 2: values that are not finite"),
        (pixels_off, r"output pixels, batch 1, row 0, against ONNX Runtime: up to 16 apart"),
        (many_pixels_by_one, r"up to 1 apart and 100\.00% of values differ"),
        (lambda outputs, batch: outputs.update(y=outputs["y"][:1]), r"output y, batch 2: float32 \(1, 3, 5\)"),
        (lambda outputs, batch: outputs.update(y=outputs["y"].astype(np.float64)), "float64"),
        (lambda outputs, batch: outputs.pop("y"), r"the plan gives only \['pixels'\]"),
    ],
)
def test_wrong_answers_are_refused_with_where_and_by_how_much(
    change: Callable[[Arrays, int], None], message: str
) -> None:
    with pytest.raises(PlanRefused, match=message):
        run(wrong(change))


def test_identical_rows_that_differ_are_refused() -> None:
    def executor(inputs: Mapping[str, np.ndarray]) -> Arrays:
        outputs = right(inputs)
        x = inputs["x"]
        if len(x) == 4 and (x == x[:1]).all():  # wrong only where all rows are the same
            outputs["y"][2] *= 1.0005
        return outputs

    with pytest.raises(PlanRefused, match="batch 4, row 2, against row 0 of identical rows"):
        run(executor)


def test_right_answers_and_those_within_the_tolerance_are_accepted() -> None:
    assert run(right) == Accepted(0.0, 0.0)

    def rounded(outputs: Arrays, batch: int) -> None:
        outputs["y"] *= 1.0001

    found = run(wrong(rounded))
    assert found.reference == pytest.approx(1e-4, rel=0.1)
    assert found.rows == 0.0


def test_without_a_bucket_of_one_the_smallest_is_the_row_alone() -> None:
    asked: list[int] = []

    def executor(inputs: Mapping[str, np.ndarray]) -> Arrays:
        asked.append(len(inputs["x"]))
        return right(inputs)

    run(executor, (2, 8))
    assert set(asked) == {2, 8}, "only batches that the plan has a profile for"


def test_one_wrong_row_among_many_is_not_averaged_away() -> None:
    def executor(inputs: Mapping[str, np.ndarray]) -> Arrays:
        outputs = right(inputs)
        if len(inputs["x"]) == 16:
            outputs["y"][7] *= 1.0015
        return outputs

    with pytest.raises(PlanRefused, match="batch 16, row 7"):
        run(executor, (1, 16))


def test_what_check_raises_ends_the_comparison() -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        accept("step", BUCKETS, sample, right, right, TOLERANCE, check)


def test_onnx_runtime_itself_is_accepted_on_every_graph_of_a_bundle(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    runner = OnnxRuntimeRunner(bundle, Worker("cpu#0", threads=1, alone=True))
    samples = Samples(bundle.manifest, 8, runner.run)
    for graph, entry in bundle.manifest.graphs.items():
        inputs = samples(graph, 3)
        assert list(inputs) == [spec.name for spec in entry.inputs]
        for spec in entry.inputs:
            assert (inputs[spec.name].shape, str(inputs[spec.name].dtype)) == ((3, *spec.shape[1:]), spec.dtype)

        def execute(inputs: Mapping[str, np.ndarray], graph: str = graph) -> Arrays:
            return runner.run(graph, dict(inputs))

        accepted = accept(
            graph, (1, 3), lambda batch, graph=graph: samples(graph, batch), execute, execute, TOLERANCES["fp32"]
        )
        assert accepted.rows < 1e-5


def test_identical_rows_that_agree_with_each_other_but_not_with_the_row_alone_are_refused() -> None:
    def executor(inputs: Mapping[str, np.ndarray]) -> Arrays:
        outputs = right(inputs)
        x = inputs["x"]
        if len(x) == 4 and (x == x[:1]).all():
            outputs["y"] *= 1.0005
        return outputs

    with pytest.raises(PlanRefused, match="batch 4, row 0, identical rows against batch 1"):
        run(executor)
