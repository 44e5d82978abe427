"""nuwaxl-export --sm: graphs that call the kernels, and the kernels compiled into the bundle, without a GPU."""

import json
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
# Not imported here: in this process it would compile, and the kernels' tests need its interpreter.
if find_spec("triton") is None:
    pytest.skip("needs triton", allow_module_level=True)

from nuwaxl.engine import Engine, Story  # noqa: E402
from nuwaxl.engine.bundle import Bundle  # noqa: E402
from nuwaxl.engine.devices import Worker  # noqa: E402
from nuwaxl.engine.runners.base import Segments  # noqa: E402
from nuwaxl.engine.runners.cuda import CudaRunner  # noqa: E402
from nuwaxl.engine.runners.custom_ops import library_path  # noqa: E402
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner  # noqa: E402
from nuwaxl.errors import InputError  # noqa: E402
from nuwaxl.export import write  # noqa: E402
from nuwaxl.export.cli import main  # noqa: E402
from nuwaxl.export.compiled import kernel_requests, write_kernels  # noqa: E402
from nuwaxl.export.model import Model  # noqa: E402
from nuwaxl.export.onnx import GPU_OPSET  # noqa: E402
from nuwaxl.export.parity import ParityError, check_parity  # noqa: E402
from nuwaxl.export.samples import graph_sources  # noqa: E402
from nuwaxl.kernels.aot import Request, check_architectures  # noqa: E402

from .cuda_provider import unknown  # noqa: E402

KERNELS = {"TemporalAttention", "TemporalConv", "TemporalConvInjection", "GroupNorm", "GroupNormSilu", "GuidedUpdate"}


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("sm") / "bundle"
    assert main([str(checkpoint), str(out), "--sm", "90"]) == 0
    return Bundle.open(out)  # verifies the size and sha256 of every file


def test_the_graphs_call_the_kernels_and_carry_their_bodies(bundle: Bundle) -> None:
    called: set[str] = set()
    for name in bundle.manifest.graphs:
        model = onnx.load(bundle.file(name))
        if name == "step":  # spatial attention, and attention to the prompt and to the negative prompt
            kinds = Counter(node.op_type for node in model.graph.node)
            assert kinds["Attention"] == 3 * kinds["TemporalAttention"] > 0
            assert kinds["Softmax"] == 0
        nodes = {node.op_type for node in model.graph.node if node.domain == "nuwaxl"}
        assert {function.name for function in model.functions} == nodes
        assert next(entry.version for entry in model.opset_import if entry.domain == "") == GPU_OPSET
        assert not unknown(model), f"{name}: try it on the provider first (cuda_provider.py)"
        called |= nodes if name in ("step", "decode") else set()
        assert not nodes or name in ("step", "decode")
    assert called == KERNELS


def test_biases_are_where_onnxruntime_adds_them_for_nothing(bundle: Bundle, tmp_path: Path) -> None:
    graph = onnx.load(bundle.file("step")).graph
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    biased = {node.input[2].removeprefix("mtd.").removesuffix(".bias") for node in convolutions if len(node.input) > 2}
    # Of the residual blocks' convolutions those after which nothing else with a bias is added.
    resnets = {f"{block}.conv2" for block in ("down_blocks.0.layers.0.resnet", "mid_layer.resnet", "mid_resnet")}
    assert biased == {"conv_in", "conv_out"} | resnets
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(bundle.file("step")), options, providers=["CPUExecutionProvider"])
    optimised = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    assert optimised["BiasGelu"] == sum(node.op_type == "Gelu" for node in graph.node) > 0


def test_with_the_library_registered_the_step_graph_answers_as_its_bodies_do(bundle: Bundle) -> None:
    random = np.random.default_rng(0)
    inputs = {
        spec.name: random.standard_normal((3, *spec.shape[1:])).astype(np.float32)
        for spec in bundle.manifest.graphs["step"].inputs
    }
    results = []
    for registered in (False, True):
        options = onnxruntime.SessionOptions()
        if registered:
            options.register_custom_ops_library(str(library_path()))
        session = onnxruntime.InferenceSession(str(bundle.file("step")), options, providers=["CPUExecutionProvider"])
        results.append(session.run(["x_next", "x0"], inputs))
    for found, expected in zip(*results, strict=True):
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_every_kernel_that_the_graphs_call_is_in_the_bundle(bundle: Bundle, model: Model) -> None:
    listed = json.loads((bundle.path / "kernels.json").read_text())["kernels"]
    wanted = {request.name for request in kernel_requests(graph_sources(model, kernels=True))}
    assert "temporal_conv_injection-L4-c8-k3-n1-float32" in wanted  # before the first prompt attention,
    assert "temporal_conv_injection-L4-c8-k3-n2-float32" in wanted  # and after it
    assert {entry["name"] for entry in listed} == wanted
    assert {entry["sm"] for entry in listed} == {90}
    for entry in listed:
        for file in entry["files"].values():
            assert bundle.manifest.files[file["file"]].sha256 == file["sha256"]


def test_kernels_in_bfloat16_pass_the_gate_and_wrong_ones_do_not(model: Model, tmp_path: Path) -> None:
    source = next(source for source in graph_sources(model, "bf16", kernels=True) if source.name == "decode")
    graph = tmp_path / write._write_graph(source, tmp_path, 0, for_gpus=True).file
    assert check_parity(source, graph, 1, "bf16", (2,)).pixels > 0
    stored = onnx.load(graph)
    assert not unknown(stored)
    factors = {node.input[1] for node in stored.graph.node if node.op_type == "TemporalConv"}
    lower = [t for t in stored.graph.initializer if t.name in factors and t.data_type == onnx.TensorProto.BFLOAT16]
    assert len(lower) > 10
    for tensor in lower:
        tensor.raw_data = bytes(len(tensor.raw_data))
    onnx.save(stored, graph)
    with pytest.raises(ParityError, match="graph decode, output video, batch 2"):
        check_parity(source, graph, 1, "bf16", (2,))


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_a_bundle_in_a_lower_precision_has_its_kernels(
    checkpoint: Path, model: Model, tmp_path: Path, precision: str, dtype: str
) -> None:
    out = tmp_path / "bundle"
    assert main([str(checkpoint), str(out), "--precision", precision, "--sm", "90"]) == 0  # through the gate
    bundle = Bundle.open(out)
    listed = {entry["name"] for entry in json.loads((out / "kernels.json").read_text())["kernels"]}
    assert listed == {request.name for request in kernel_requests(graph_sources(model, precision, kernels=True))}
    # The update, and T-KLVAE's last convolution, stay in float32.
    assert {name.split("-")[0] for name in listed if name.endswith("-float32")} == {"guided_update", "temporal_conv"}
    assert {name.rsplit("-", 1)[1] for name in listed} == {"float32", dtype}
    graphs = {name: onnx.load(bundle.file(name)) for name in bundle.manifest.graphs}
    assert not any(map(unknown, graphs.values()))
    called = {node.op_type for name in ("step", "decode") for node in graphs[name].graph.node}
    assert called >= KERNELS
    if precision == "fp16":  # a render on the bodies; ONNX Runtime's CPU provider multiplies no bfloat16
        with Engine.open(bundle, devices="cpu:1") as engine:
            frames = np.concatenate([clip.frames for clip in engine.render(Story([(0, "a red fox")]), frames=7)])
        assert frames.std() > 20


def test_compiling_again_gives_the_same_bytes(
    bundle: Bundle, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    asked = sorted(kernel_requests(graph_sources(model, kernels=True)), key=lambda request: request.name)
    write_kernels(tmp_path / "again", asked[::4], [90])
    files = sorted((tmp_path / "again").glob("*.sm_90.*"))
    assert len(files) >= 4
    for file in files:
        assert file.read_bytes() == (bundle.path / file.name).read_bytes(), file.name


def test_a_kernel_that_does_not_compile_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        Exception, match=r"expected the kernels to compile; found ZeroDivision.*; see python -m"
    ) as raised:
        write_kernels(tmp_path, [Request("temporal_attention", torch.float32, heads=0)], [80])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("text", "said"), [("70", "found 70"), ("80,x", "found 'x'"), ("", "found ''")])
def test_an_unknown_gpu_is_one_line(
    checkpoint: Path, tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main([str(checkpoint), str(tmp_path / "out"), "--sm", text])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_architectures_are_checked_before_any_work() -> None:
    with pytest.raises(InputError, match="80,86,89,90,100,120; found 75"):
        check_architectures([80, 75])


def test_of_a_step_only_convolutions_sit_between_transpositions(bundle: Bundle) -> None:
    """What the kernels read and write is in the layout that the layers around them have."""
    graph = onnx.load(bundle.file("step")).graph
    made = {output: node.op_type for node in graph.node for output in node.output}
    turned = [node for node in graph.node if node.op_type == "Transpose"]
    for turn in turned:
        taken = {node.op_type for node in graph.node if turn.output[0] in node.input}
        assert taken == {"Conv"} or made[turn.input[0]] == "Conv", turn.name
    assert 0 < len(turned) <= 2 * sum(node.op_type == "Conv" for node in graph.node)


def denoised(bundle: Bundle, runner: OnnxRuntimeRunner | CudaRunner) -> np.ndarray:
    """Latents of some segments after some steps; the runner is closed."""
    network, random = bundle.manifest.network, np.random.default_rng(0)
    latent = (5, network.length, network.latent_channels, network.latent_height, network.latent_width)
    prompts = (network.prompt_tokens, network.prompt_dim)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    batch = Segments(
        normal(*latent),
        normal(5, network.length, *prompts),
        normal(5, *prompts),
        normal(*latent),
        normal(*latent)[:, :, :1],
    )
    denoising = runner.start(batch)
    for timestep in (90, 50, 20, 5):  # the first run is captured, the others replay it
        row = np.full((5, 6), 0.3, dtype=np.float32)
        denoising.step(np.full(5, timestep), row, np.full(5, 2.0, dtype=np.float32), None)
    latents = denoising.latents(range(5))
    del denoising
    runner.close()
    return latents


@pytest.mark.gpu
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="needs onnxruntime-gpu"
)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 2e-2), ("bf16", 1e-1)])
def test_on_the_gpu_the_kernels_give_what_the_bodies_give_on_the_cpu_in_float32(
    bundle: Bundle, checkpoint: Path, tmp_path: Path, precision: str, tolerance: float
) -> None:
    major, minor = torch.cuda.get_device_capability()
    options = ["--precision", precision, "--sm", str(10 * major + minor)]
    assert main([str(checkpoint), str(tmp_path / "bundle"), *options]) == 0
    on_gpu = Bundle.open(tmp_path / "bundle")
    expected = denoised(bundle, OnnxRuntimeRunner(bundle, Worker("cpu#0", 4, alone=True)))
    found = denoised(on_gpu, CudaRunner(on_gpu, Worker("cuda:0", 1, alone=True, kind="cuda")))
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
