"""Weights beside the graph: the same answers, every byte verified, equal tensors once, and the same file each time."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from nuwaxl.export import write  # noqa: E402
from nuwaxl.export.model import Model  # noqa: E402
from nuwaxl.export.onnx import save, to_onnx  # noqa: E402
from nuwaxl.export.samples import graph_sources  # noqa: E402


class Twins(torch.nn.Module):
    """Two equal layers, one of other values, one of float16 values, and a small bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(48, 48) for _ in range(4)).requires_grad_(False)
        self.layers[1].weight.copy_(self.layers[0].weight)
        self.layers[3].weight.copy_(self.layers[3].weight.half())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


@pytest.fixture
def twins(tmp_path: Path) -> Path:
    x = {"x": torch.zeros(2, 48)}
    save(to_onnx(Twins(), x, ["y"], data=tmp_path / "twins.data", external_from=0), tmp_path / "twins.onnx")
    return tmp_path / "twins.onnx"


def places(path: Path) -> dict[str, dict[str, str]]:
    graph = onnx.load(path, load_external_data=False).graph
    return {t.name: {e.key: e.value for e in t.external_data} for t in graph.initializer}


def test_large_weights_lie_in_pages_of_the_file_and_small_ones_in_the_graph(twins: Path) -> None:
    found = places(twins)
    outside = [place for place in found.values() if place]
    assert len(outside) == 4
    assert {place["location"] for place in outside} == {"twins.data"}
    assert all(int(place["offset"]) % 4096 == 0 for place in outside)
    assert sum(not place for name, place in found.items() if "bias" in name) == 4


def test_equal_weights_are_stored_once_and_float16_values_as_float16(twins: Path) -> None:
    found = [(int(p["offset"]), int(p["length"])) for p in places(twins).values() if p]
    assert sorted(set(found)) == [(0, 9216), (12288, 9216), (24576, 4608)]
    assert twins.with_suffix(".data").stat().st_size == 24576 + 4608


def test_onnx_runtime_reads_them(twins: Path) -> None:
    x = torch.randn(3, 48)
    session = onnxruntime.InferenceSession(str(twins), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], Twins()(x), rtol=1e-5, atol=1e-6)


def test_a_small_model_has_no_file_of_data(tmp_path: Path) -> None:
    model = to_onnx(Twins(), {"x": torch.zeros(2, 48)}, ["y"], data=tmp_path / "twins.data")
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_two_exports_give_the_same_bytes(model: Model, tmp_path: Path, precision: str) -> None:
    """Of one graph, with its file of data; the slow tests do all graphs."""
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
        source = next(graph_sources(model, precision))  # type: ignore[arg-type]
        write._write_graph(source, folder, 0)
    for name in ("text.data", "text.onnx"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
