"""Real TensorRT-RTX engines of the demo bundle, built without a GPU, and what stands in them."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")

import onnx
from onnx import TensorProto, helper

from nuwaxl.engine.bundle import Bundle, demo_bundle
from nuwaxl.engine.bundle_schema import TensorSpec
from nuwaxl.engine.plans import Target, find_plan
from nuwaxl.engine.runners.tensorrt_module import load_tensorrt
from nuwaxl.errors import InputError
from nuwaxl.export.cli import main
from nuwaxl.export.tensorrt.build import BuildError, Request, build, parse

from . import plan_text

BATCHES = (1, 3)
TYPES = {"float32": "float", "uint8": "uint8", "int64": "int64"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo bundle with plans by the command."""
    folder = tmp_path_factory.mktemp("rtx") / "demo"
    shutil.copytree(demo_bundle(), folder)
    batches = ",".join(map(str, BATCHES))
    assert main([str(folder), "--target", "tensorrt-rtx", "--sm", "89", "--batches", batches]) == 0
    return folder


def test_the_manifest_lists_a_plan_of_every_graph_that_opens_with_the_bundle(built: Path) -> None:
    bundle = Bundle.open(built)
    version = load_tensorrt("tensorrt-rtx").__version__
    for graph in bundle.manifest.graphs:
        plan = find_plan(bundle.manifest, graph, Target("tensorrt-rtx", version, 89), str(built))
        assert plan.batches == BATCHES
        assert plan.accepted_on == (), "nothing ran here, so nothing was accepted"
        content = (built / plan.file).read_bytes()
        assert bundle.manifest.files[plan.file].sha256 == hashlib.sha256(content).hexdigest()
    assert {path.name for path in (built / "plans").iterdir()} == {
        plan.file.removeprefix("plans/") for plan in bundle.manifest.plans
    }


@pytest.mark.parametrize("graph", ["text", "prepare", "step", "decode", "encode"])
def test_an_engine_has_the_tensors_of_the_manifest_in_every_profile_and_is_for_the_gpu_asked_for(
    built: Path, graph: str
) -> None:
    bundle = Bundle.open(built)
    entry = bundle.manifest.graphs[graph]
    (plan,) = (plan for plan in bundle.manifest.plans if plan.graph == graph)
    content = (built / plan.file).read_bytes()
    assert ".".join(map(str, plan_text.version(content))) == ".".join(plan.version.split(".")[:3])
    program = plan_text.program(content)
    assert "accelerators={sm89 }" in program
    assert "tf32=0" in program
    for kind, specs in (("inputs", entry.inputs), ("outputs", entry.outputs)):
        assert plan_text.listed(program, kind) == [spec.name for spec in specs]
        for spec in specs:
            shape = tuple(BATCHES[0] if isinstance(size, str) else size for size in spec.shape)
            assert plan_text.tensor(program, spec.name) == (shape, TYPES[spec.dtype])
            for profile in range(len(BATCHES)):
                assert plan_text.has_tensor(content, spec.name, profile), (spec.name, profile)
            assert not plan_text.has_tensor(content, spec.name, len(BATCHES))


def test_what_is_there_is_not_built_again(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (built / "plans").iterdir()}
    batches = ",".join(map(str, BATCHES))
    assert main([str(built), "--target", "tensorrt-rtx", "--sm", "89", "--batches", batches]) == 0
    assert capsys.readouterr().out.count("there already") == 5
    assert {path: path.stat().st_mtime_ns for path in (built / "plans").iterdir()} == before


def request(graph: str, **changes: object) -> Request:
    bundle = Bundle.open(demo_bundle())
    entry = bundle.manifest.graphs[graph]
    values = {"inputs": entry.inputs, "outputs": entry.outputs, **changes}
    return Request(bundle.file(graph), "tensorrt-rtx", (89,), (1,), (), **values)  # type: ignore[arg-type]


def test_a_graph_with_other_tensors_than_the_manifest_says_is_refused() -> None:
    with pytest.raises(InputError, match=r"the inputs of text\.onnx as in the manifest; found tokens"):
        parse(request("text", inputs=(TensorSpec("tokens", ("batch", 24), "float32"),)))


def test_a_graph_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(BuildError, match=r"broken\.onnx: tensorrt-rtx cannot read it"):
        parse(Request(path, "tensorrt-rtx", (89,), (1,), (), (), ()))


def test_a_build_reports_how_far_it_is_and_ends_when_it_is_told_to() -> None:
    seen: list[float] = []

    def report(phase: str, fraction: float) -> bool:
        seen.append(fraction)
        return True

    assert build(request("text"), report).nbytes > 1_000_000
    assert seen == sorted(seen)
    assert seen[0] == 0.0
    assert seen[-1] > 0.5
    with pytest.raises(BuildError, match=r"(?i)cancel"):
        build(request("text"), lambda phase, fraction: False)


@pytest.mark.parametrize(
    ("precision", "onnx_type"), [("float16", TensorProto.FLOAT16), ("bfloat16", TensorProto.BFLOAT16)]
)
def test_an_attention_whose_heads_are_widened_for_onnx_runtime_is_built(
    tmp_path: Path, precision: str, onnx_type: int
) -> None:
    torch = pytest.importorskip("torch")
    from nuwaxl.export import attention, write

    class Attention(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, query: Any, key: Any, value: Any) -> Any:
            return attention.attention(query, key, value, 8)

    random, dtype = torch.Generator().manual_seed(0), getattr(torch, precision)
    inputs = {
        name: torch.randn(2, n, 1280, generator=random).to(dtype)
        for name, n in (("query", 64), ("key", 77), ("value", 77))
    }
    model = write.to_onnx(Attention(), inputs, ["mixed"], for_gpus=True)
    assert {"Pad", "Attention", "Slice"} <= {node.op_type for node in model.graph.node}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx_type
    path = tmp_path / "attention.onnx"
    onnx.save(model, path)
    shapes = {"query": ("batch", 64, 1280), "key": ("batch", 77, 1280), "value": ("batch", 77, 1280)}
    specs = tuple(TensorSpec(name, shape, precision) for name, shape in shapes.items())
    mixed = (TensorSpec("mixed", ("batch", 64, 1280), precision),)
    asked = Request(path, "tensorrt-rtx", (89,), (1, 2), (), specs, mixed)
    assert build(asked, lambda phase, fraction: True).nbytes > 1000


def test_an_attention_that_no_kernel_fits_is_built_of_its_parts(tmp_path: Path) -> None:
    shape = ("batch", 8, 16, 8)  # TensorRT-RTX 1.7 has no kernel for heads of 8 channels
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name in "qkvy"]
    graph = helper.make_graph([helper.make_node("Attention", ["q", "k", "v"], ["y"])], "a", tensors[:3], tensors[3:])
    path = tmp_path / "attention.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    specs = tuple(TensorSpec(name, shape, "float16") for name in "qkvy")
    asked = Request(path, "tensorrt-rtx", (89,), (1,), (), specs[:3], specs[3:])
    assert build(asked, lambda phase, fraction: True).nbytes > 1000


def test_the_published_runtime_has_the_settings_that_the_runner_makes() -> None:
    """What the fake of the runner's tests takes: a runtime configuration itself needs a GPU."""
    trt = load_tensorrt("tensorrt-rtx")
    for name, value in (("DynamicShapesKernelSpecializationStrategy", "EAGER"), ("CudaGraphStrategy", "DISABLED")):
        assert hasattr(getattr(trt, name), value)
    for name in ("dynamic_shapes_kernel_specialization_strategy", "cuda_graph_strategy"):
        setting = getattr(trt.IRuntimeConfig, name)
        assert isinstance(setting, property)
        assert setting.fset is not None
