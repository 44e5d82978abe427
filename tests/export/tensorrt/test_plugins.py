"""The plugins over TensorRT's own Python package: it takes them, and gives its builder what launches our kernels."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")
pytest.importorskip("numpy")
if __import__("importlib.util").util.find_spec("tensorrt_bindings") is None:
    pytest.skip("needs tensorrt-cu13-bindings", allow_module_level=True)

from nuwaxl.errors import NuwaxlError  # noqa: E402
from nuwaxl.export import functions  # noqa: E402
from nuwaxl.export.tensorrt.kernels import NODES, Kernels, nodes_of, with_parameters, with_plugins  # noqa: E402
from nuwaxl.export.tensorrt.plugins import register  # noqa: E402
from nuwaxl.kernels.aot import Request, requests_to_json  # noqa: E402

from .fake_plugin_host import Builder, DataType, Expression, Host, TensorDescriptor, plugin_package  # noqa: E402

L, C, HEADS, TAPS, PIXELS = 16, 32, 2, 3, 70
SM = 90
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the temporal kernels at a width so small that all may be plugins, and one that is too wide."""
    out = tmp_path_factory.mktemp("kernels")
    asked = [
        Request("temporal_attention", torch.bfloat16, L, C, heads=HEADS),
        Request("temporal_conv", torch.bfloat16, L, C, taps=TAPS),
        Request("temporal_conv_injection", torch.bfloat16, L, C, taps=TAPS, branches=2),
    ]
    (out / "requests.json").write_text(json.dumps(requests_to_json(asked)))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_")}
    command = [sys.executable, "-m", "nuwaxl.kernels.aot", str(out), "--requests", str(out / "requests.json")]
    environment["TRITON_CACHE_DIR"] = str(out / "cache")
    done = subprocess.run([*command, "--sm", str(SM)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def host(folder: Path) -> Host:
    """TensorRT's package with our plugins registered."""
    with plugin_package() as (package, compiled):
        kernels = Kernels(folder, SM)
        register(package, kernels, kernels.nodes())
    return compiled


def plugin(host: Host, node: str, shapes: list[tuple[int, ...]], heads: int | None = None) -> tuple[Any, Any]:
    """A plugin as TensorRT's builder takes it through its stages, and what it is to be launched with."""
    creator = host.get_plugin_registry().get_creator(node, "1", "nuwaxl")
    fields = [] if heads is None else [host.PluginField("heads", heads, None)]
    made = creator.create_plugin(node, "nuwaxl", fields, "BUILD", host.QuickPluginCreationRequest.STRICT_AOT)
    types = [DataType.BF16] * len(shapes)
    assert made.get_output_data_types(types, [len(shape) for shape in shapes]) == [DataType.BF16]
    expressions = [[Expression(size) for size in shape] for shape in shapes]
    (out,) = made.get_output_shapes(expressions, [], Builder())
    made.out_shape = tuple(size.value for size in out)
    weights = {1, 2} if node != "TemporalAttention" else set()
    in_out = [TensorDescriptor(shape, DataType.BF16, dynamic=i not in weights) for i, shape in enumerate(shapes)]
    in_out.append(TensorDescriptor(made.out_shape, DataType.BF16))
    supported = made.get_supported_format_combinations(in_out, len(shapes))
    assert [(each.type, each.format) for each in supported] == [(DataType.BF16, "LINEAR")] * len(in_out)
    made.configure_plugin(in_out[:-1], in_out[-1:])
    assert made.get_valid_tactics() == []
    made.set_tactic(0)
    launch, scalars = SimpleNamespace(), Scalars()
    made.get_launch_params(expressions, in_out, len(shapes), launch, scalars, Builder())
    name, ptx = made.get_kernel([each.desc for each in in_out[:-1]], [each.desc for each in in_out[-1:]])
    return made, SimpleNamespace(name=name, ptx=ptx.decode(), scalars=scalars, **vars(launch))


class Scalars(dict):
    """Takes the scalars."""

    nbSymExprs = 0


def value(expression: Any) -> int:
    """The number of an expression."""
    while not isinstance(expression, Expression):
        expression = expression.expr if hasattr(expression, "expr") else vars(expression)["_int_expr"]
    return expression.value


SHAPES = {
    "TemporalAttention": [(3, L, PIXELS, 3 * C)],
    "TemporalConv": [(3, L, PIXELS, C), (TAPS, C, C), (C,)],
    "TemporalConvInjection": [(6, L, PIXELS, C), (TAPS, C, C), (C,), (3, L, PIXELS, C), (3, L, PIXELS, C)],
}


@pytest.mark.parametrize("node", list(NODES))
def test_tensorrt_gets_the_shape_the_code_and_the_launch_of_our_kernel(
    host: Host, folder: Path, tmp_path: Path, node: str
) -> None:
    shapes = SHAPES[node]
    made, launch = plugin(host, node, shapes, HEADS if node == "TemporalAttention" else None)
    assert made.out_shape == (*shapes[0][:3], C)
    kernel, arguments = NODES[node]
    manifest = json.loads((folder / "kernels.json").read_text())
    (entry,) = (entry for entry in manifest["kernels"] if entry["kernel"] == kernel)
    grid = entry["grid"]
    programs = shapes[0][0] * grid["fixed"] * -(-PIXELS * grid["per_item"] // grid["block"])
    assert value(launch.grid_x) == programs
    assert (value(launch.grid_y), value(launch.grid_z)) == (1, 1)
    assert (value(launch.block_x), value(launch.block_y)) == (32 * entry["num_warps"], 1)
    assert value(launch.shared_mem) == entry["shared_bytes"]
    assert launch.scalars.nbSymExprs == 1
    assert value(launch.scalars[0]) == PIXELS

    # The order in which TensorRT passes them: inputs as the node has them, scalars, outputs.
    assert [each["name"] for each in entry["arguments"] if each["name"] in arguments] == list(arguments)
    assert arguments == (*functions._NODES[node].inputs, "pixels", *functions._NODES[node].outputs)
    assert launch.name == entry["entry"]
    parameters = launch.ptx.split(f".entry {launch.name}(", 1)[1].split(")", 1)[0].split(",")
    kinds = ["u32" if name == "pixels" else "u64" for name in arguments]
    assert [re.search(r"\.param \.(\w+)", parameter)[1] for parameter in parameters] == kinds  # type: ignore[index]
    assert len(shapes) + 1 + 1 == len(arguments)
    (tmp_path / "kernel.ptx").write_text(launch.ptx)
    command = [PTXAS, f"-arch=sm_{SM}a", tmp_path / "kernel.ptx", "-o", tmp_path / "kernel.cubin"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_kernel_that_the_bundle_lacks_is_named(host: Host) -> None:
    with pytest.raises(NuwaxlError, match=r"temporal_attention for bf16, LENGTH 16, HEADS 4, HEAD_DIM 8 .*--sm"):
        plugin(host, "TemporalAttention", [(1, L, PIXELS, 3 * C)], heads=4)


def test_a_parameter_that_the_code_reads_is_not_dropped(folder: Path) -> None:
    manifest = json.loads((folder / "kernels.json").read_text())
    (entry,) = (entry for entry in manifest["kernels"] if entry["kernel"] == "temporal_conv_injection")
    ptx = (folder / entry["files"]["ptx"]["file"]).read_text()
    names = [argument["name"] for argument in entry["arguments"]]
    with pytest.raises(NuwaxlError, match="not to read scale; found that it does"):
        with_parameters(ptx, entry["entry"], [*names, "a", "b"], set(names) - {"scale"})
    with pytest.raises(NuwaxlError, match=f"expected {len(names)} parameters .* found {len(names) + 2}"):
        with_parameters(ptx, entry["entry"], names, set(names))
    with pytest.raises(NuwaxlError, match="the entry other in a kernel's PTX"):
        with_parameters(ptx, "other", names, set(names))


def test_kernels_with_more_shared_memory_than_a_launch_gets_stay_bodies(folder: Path, tmp_path: Path) -> None:
    assert Kernels(folder, SM).nodes() == set(NODES)
    assert Kernels(folder, 80).nodes() == set()
    assert Kernels(tmp_path, SM).nodes() == set()
    shutil.copytree(folder, tmp_path / "wide")
    path = tmp_path / "wide" / "kernels.json"
    manifest = json.loads(path.read_text())
    for entry in manifest["kernels"]:
        if entry["kernel"] == "temporal_conv":
            entry["shared_bytes"] = 48 * 1024 + 1
    path.write_text(json.dumps(manifest))
    assert Kernels(tmp_path / "wide", SM).nodes() == {"TemporalAttention", "TemporalConvInjection"}


def test_a_graph_for_plugins_names_their_namespace_and_keeps_the_other_bodies(tmp_path: Path) -> None:
    from nuwaxl.export.onnx import serialized, to_onnx
    from nuwaxl.kernels import ops

    class Temporal(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(TAPS, 12, 12))
            self.bias = torch.nn.Parameter(torch.randn(12))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = ops.temporal_conv(x, self.weight, self.bias)
            return ops.temporal_attention(torch.cat([h, h, h], dim=-1), 2)

    path = tmp_path / "graph.onnx"
    path.write_bytes(serialized(to_onnx(Temporal().eval(), {"x": torch.randn(2, 4, 6, 12)}, ["y"])))
    assert nodes_of(path) == {"TemporalAttention", "TemporalConv"}
    model = onnx.load_from_string(with_plugins(path, {"TemporalAttention"}))
    assert [function.name for function in model.functions] == ["TemporalConv"]
    assert list(model.graph.initializer) == list(onnx.load(path).graph.initializer), "a refit finds them by their names"
    for node in model.graph.node:
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "TemporalAttention":
            assert given.pop("scale") == pytest.approx(6**-0.5)
            assert given == {"heads": 2, "plugin_namespace": b"nuwaxl", "plugin_version": b"1"}
        elif node.op_type == "TemporalConv":
            assert given == {}
