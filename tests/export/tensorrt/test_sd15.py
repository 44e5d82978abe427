"""TensorRT-RTX reads graphs of sd15 at their real size: those in sd15/, which weightless.py made."""

import shutil
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("onnx_ir")

from nuwaxl.engine.bundle_schema import TensorSpec, required_tensors  # noqa: E402
from nuwaxl.export.model import Model  # noqa: E402
from nuwaxl.export.onnx import serialized  # noqa: E402
from nuwaxl.export.tensorrt.build import Request, parse  # noqa: E402
from nuwaxl.train.presets import SD15  # noqa: E402

from .weightless import weightless, write_zeros  # noqa: E402

GRAPHS = Path(__file__).parent / "sd15"
NAMES = ("decode", "encode", "prepare", "step", "text")
# Parameters of the networks (docs/models.md), in bytes of float32: less what each graph leaves out.
LEAST_WEIGHT_BYTES = {"text": 4.9e8, "step": 3.4e9, "prepare": 1e8, "decode": 1.9e8, "encode": 1.3e8}


@pytest.mark.parametrize("name", NAMES)
def test_tensorrt_rtx_reads_it_with_the_tensors_of_a_bundle(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
    path = shutil.copy(GRAPHS / f"{name}.onnx", tmp_path)
    model = onnx.load(path, load_external_data=False)
    zeros = write_zeros(model, tmp_path)
    assert zeros.stat().st_size > LEAST_WEIGHT_BYTES[name]
    assert zeros.stat().st_blocks * 512 < 1_000_000, "nothing is on the disk"
    inputs, outputs = required_tensors(Model(SD15, None, None, None, b"").network(0))[name]  # type: ignore[arg-type]
    # The state between prepare and step is not of a fixed list.
    inputs += [_spec(tensor) for tensor in model.graph.input[len(inputs) :]]
    outputs += [_spec(tensor) for tensor in model.graph.output[len(outputs) :]]
    request = Request(Path(path), "tensorrt-rtx", (89,), (1,), (), tuple(inputs), tuple(outputs))
    assert parse(request).network.num_layers > 100


def _spec(tensor: "onnx.ValueInfoProto") -> TensorSpec:
    shape = tensor.type.tensor_type.shape.dim
    return TensorSpec(tensor.name, (shape[0].dim_param, *(size.dim_value for size in shape[1:])), "float32")


@pytest.mark.slow  # 25 to 150 s and 0.6 GB a graph
@pytest.mark.parametrize("name", NAMES)
def test_the_graphs_are_those_that_the_exporter_makes_now(name: str) -> None:
    assert serialized(weightless(name)) == (GRAPHS / f"{name}.onnx").read_bytes(), (
        f"make it again: python tests/export/tensorrt/weightless.py {name} tests/export/tensorrt/sd15"
    )
