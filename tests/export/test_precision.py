"""Bundles in float16 and bfloat16: strongly typed, delicate parts in float32, and a render near float32's."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from nuwaxl.engine import Engine, Story  # noqa: E402
from nuwaxl.engine.bundle import Bundle, write_manifest  # noqa: E402
from nuwaxl.engine.bundle_schema import Graph, Sampler, required_tensors  # noqa: E402
from nuwaxl.engine.samples import Samples  # noqa: E402
from nuwaxl.errors import InputError  # noqa: E402
from nuwaxl.export import attention, write  # noqa: E402
from nuwaxl.export.emulation import _types, emulated  # noqa: E402
from nuwaxl.export.graphs import TextGraph  # noqa: E402
from nuwaxl.export.model import Model  # noqa: E402
from nuwaxl.export.onnx import to_onnx  # noqa: E402
from nuwaxl.export.parity import ParityError, check_parity  # noqa: E402
from nuwaxl.export.precision import lowered  # noqa: E402
from nuwaxl.export.samples import graph_sources  # noqa: E402
from nuwaxl.export.tensorrt.reference import reference_of  # noqa: E402
from nuwaxl.train.networks.text import CLIPText  # noqa: E402

from .cuda_provider import unknown  # noqa: E402

TYPES = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
STORY = Story([(0, "a red fox"), (4, "a blue bear")])


@pytest.fixture(scope="module", params=TYPES)
def low(request: pytest.FixtureRequest, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny checkpoint's bundle in a lower precision, with all of its larger weights in files beside the graphs."""
    out = tmp_path_factory.mktemp("low") / request.param
    sampler = Sampler("ddim", 7, 1.5, depth=1)
    write.export_bundle(
        model, out, name="tiny", sampler=sampler, decode_overlap=1, precision=request.param, external_from=0
    )
    return Bundle.open(out)


def render(bundle: Path) -> np.ndarray:
    with Engine.open(bundle, devices="cpu:1") as engine:
        return np.concatenate([clip.frames for clip in engine.render(STORY, frames=7, seed=3)]).astype(int)


def test_the_manifest_says_so_and_only_the_state_is_of_the_precision(low: Bundle) -> None:
    manifest = low.manifest
    assert manifest.precision == low.path.name
    # No weight of this prepare takes 1 KiB.
    expected = {name: None if name == "prepare" else f"{name}.data" for name in manifest.graphs}
    assert {name: graph.data for name, graph in manifest.graphs.items()} == expected
    state = {spec.dtype for spec in manifest.graphs["prepare"].outputs}
    assert state == {{"fp16": "float16", "bf16": "bfloat16"}[manifest.precision]}
    for name, (inputs, outputs) in required_tensors(manifest.network).items():
        assert set(inputs) <= set(manifest.graphs[name].inputs)
        assert set(outputs) <= set(manifest.graphs[name].outputs)


def test_products_are_in_the_precision_and_statistics_in_float32(low: Bundle) -> None:
    lower, products, exact, norms = TYPES[low.manifest.precision], 0, 0, Counter[int]()
    for name in low.manifest.graphs:
        model = onnx.load(low.file(name), load_external_data=False)
        types = _types(model)
        for node in model.graph.node:
            kind = types.get(node.input[0]) if node.input else None
            if node.op_type in ("Softmax", "InstanceNormalization", "Cos", "Sin"):
                assert kind == onnx.TensorProto.FLOAT, (name, node.op_type)
            elif node.op_type == "LayerNormalization":  # in one node; its statistics are of the stash's type
                stash = {a.i for a in node.attribute if a.name == "stash_type"}
                assert stash <= {onnx.TensorProto.FLOAT}, (name, node.name)
                assert {types[tensor] for tensor in node.input} == {kind}, (name, node.name)
                norms[kind] += 1
            elif node.op_type in ("Conv", "MatMul", "Gemm", "Attention"):
                assert kind in (lower, onnx.TensorProto.FLOAT), (name, node.name)
                products += kind == lower
                exact += kind == onnx.TensorProto.FLOAT
        if low.manifest.precision == "bf16":
            assert not unknown(model), f"{name}: try it on the provider first (cuda_provider.py)"
        # What the precision is for: weights take half of the memory.
        sizes = {t.data_type: 0 for t in model.graph.initializer}
        for t in model.graph.initializer:
            sizes[t.data_type] += int(np.prod(t.dims))
        assert sizes[lower] > 0.6 * sum(sizes.values()), name
    assert products > 60
    assert norms[onnx.TensorProto.FLOAT] == 1, "the text encoder's last layer, which the caller gets in float32"
    assert norms[lower] == norms.total() - 1 > 10
    # The timestep's two layers and the last convolutions of MTD and T-KLVAE with what follows them.
    assert exact == 9


class TwoHeads(torch.nn.Module):
    """Attention of two heads of so many channels."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.to_q = torch.nn.Linear(2 * size, 2 * size)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attention.attention(self.to_q(query), key, value, 2)


@pytest.mark.parametrize(
    ("size", "keys", "dtype", "head"),
    [
        (160, 77, torch.float16, 192),
        (160, 77, torch.bfloat16, 192),
        (200, 77, torch.float16, 256),
        (160, 64, torch.float16, 160),  # one block of keys, never shared out
        (160, 77, torch.float32, 160),  # another kernel
        (128, 77, torch.float16, 128),
        (80, 200, torch.float16, 80),
        (192, 77, torch.float16, 192),
    ],
)
def test_heads_that_the_cuda_provider_gets_wrong_are_widened(
    size: int, keys: int, dtype: torch.dtype, head: int
) -> None:
    random = torch.Generator().manual_seed(size)
    shapes = {"query": (3, 9, 2 * size), "key": (3, keys, 2 * size), "value": (3, keys, 2 * size)}
    inputs = {name: torch.randn(shape, generator=random).to(dtype) for name, shape in shapes.items()}
    module = TwoHeads(size).to(dtype)
    model = to_onnx(module, inputs, ["mixed"], for_gpus=True)
    assert not unknown(model)
    types = {v.name: v for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    (node,) = (node for node in model.graph.node if node.op_type == "Attention")
    assert types[node.input[0]].type.tensor_type.shape.dim[-1].dim_value == 2 * head
    session = onnxruntime.InferenceSession(emulated(model).SerializeToString(), providers=["CPUExecutionProvider"])
    half = {entry.name for entry in session.get_inputs() if entry.type == "tensor(float16)"}
    given = {
        name: tensor.float().numpy().astype(np.float16 if name in half else np.float32)
        for name, tensor in inputs.items()
    }
    found = session.run(None, given)[0].astype(np.float32)
    with torch.no_grad():
        expected = module.float()(*(tensor.float() for tensor in inputs.values())).numpy()
    assert np.abs(found - expected).max() < 0.05


def test_it_renders_near_float32(low: Bundle, exported: Path, tmp_path: Path) -> None:
    path, limit = low.path, {"fp16": 0.5, "bf16": 4.0}[low.manifest.precision]
    if low.manifest.precision == "bf16":
        with pytest.raises(InputError, match="found bf16"):
            Engine.open(path, devices="cpu:1")
        path = in_float32(low, tmp_path)
    expected, found = render(exported), render(path)
    assert expected.std() > 20, "the video is one grey"
    difference = np.abs(found - expected)
    assert 0 < difference.mean() < limit


def test_what_plans_are_compared_with_is_near_float32_and_rounds(low: Bundle, exported: Path) -> None:
    references = reference_of(low), reference_of(Bundle.open(exported))
    samples = Samples(low.manifest, 300, references[0])
    for graph in low.manifest.graphs:
        inputs = samples(graph, 2)
        found = references[0](graph, inputs)
        wide = {
            name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in inputs.items()
        }
        for name, expected in references[1](graph, wide).items():
            distance = np.abs(found[name].astype(np.float64) - expected).mean() / np.abs(expected).mean()
            assert 0 < distance < {"fp16": 1e-2, "bf16": 0.15}[low.manifest.precision], (graph, name)
            if found[name].dtype == np.float32 and graph == "prepare":  # of bfloat16
                assert not (found[name].view(np.uint32) & 0xFFFF).any()


@pytest.mark.slow
def test_a_second_export_gives_the_same_bytes(low: Bundle, model: Model, tmp_path: Path) -> None:
    precision, sampler = low.manifest.precision, low.manifest.sampler
    out = tmp_path / "again"
    write.export_bundle(
        model, out, name="tiny", sampler=sampler, decode_overlap=1, precision=precision, external_from=0
    )
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in low.path.iterdir())
    for path in low.path.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def in_float32(bundle: Bundle, folder: Path) -> Path:
    """A bfloat16 bundle whose graphs any runtime computes, with the same roundings."""
    graphs = {}
    for name, graph in bundle.manifest.graphs.items():
        model = emulated(onnx.load(bundle.file(name)))
        onnx.save(model, folder / graph.file)
        graphs[name] = Graph(graph.file, None, write._specs(model.graph.input), write._specs(model.graph.output))
    shutil.copy(bundle.tokenizer, folder)
    m = bundle.manifest
    write_manifest(
        folder, name=m.name, producer=m.producer, precision="fp32", network=m.network, diffusion=m.diffusion,
        sampler=m.sampler, graphs=graphs,
    )  # fmt: skip
    return folder


def test_the_emulation_rounds_as_bfloat16_does() -> None:
    class Sums(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.linspace(-3, 3, 300).bfloat16(), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ((x.bfloat16() * self.scale + self.scale) * self.scale).float()

    module, x = Sums(), torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    model = emulated(to_onnx(module, {"x": x}, ["y"]))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    expected = module(x)
    assert np.array_equal(found, expected.numpy())
    scale = module.scale.float()
    assert not torch.equal((x * scale + scale) * scale, expected)


@pytest.mark.parametrize("precision", TYPES)
def test_the_gate_refuses_a_wrong_weight_in_every_precision(model: Model, tmp_path: Path, precision: str) -> None:
    source = next(iter(graph_sources(model, precision)))
    graph = write._write_graph(source, tmp_path, 0)
    assert check_parity(source, tmp_path / graph.file, 1, precision).relative > 1e-5
    source.module.text.text_model.encoder.layers[0].mlp.fc1.weight.mul_(1.5)
    write._write_graph(source, tmp_path, 0)
    with pytest.raises(ParityError, match="graph text, output prompt, batch 1: relative error"):
        check_parity(source, tmp_path / graph.file, 1, precision)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.data", "text.onnx"]


def test_a_weight_that_float16_cannot_hold_is_named(model: Model) -> None:
    text = CLIPText(model.config.text).requires_grad_(False)
    text.text_model.encoder.layers[0].mlp.fc1.weight[0, 0] = 1e5
    with pytest.raises(InputError, match=r"65504.*1e\+05 in text_model\.encoder\.layers\.0\.mlp\.fc1\.weight.*bf16"):
        lowered(text, torch.float16)
    assert TextGraph(lowered(text, torch.bfloat16)).text.text_model.encoder.layers[0].mlp.fc1.weight[0, 0] > 9e4
    assert text.text_model.encoder.layers[0].mlp.fc1.weight.dtype == torch.float32, "the network itself stays"
