"""Which errors of a plan are too large, by the precision of its bundle."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nuwaxl.engine.acceptance import Accepted, Arrays, PlanRefused
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.bundle_schema import Plan, PrecisionName
from nuwaxl.engine.runners.tensorrt_acceptance import Reference, compare

PLAN = Plan("step", "", "tensorrt", "11.4.0", (90,), (1, 2), (), "", "", ())


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
