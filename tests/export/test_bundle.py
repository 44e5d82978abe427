"""The bundle that nuwaxl-export writes: what is in it, and that its graphs answer as the networks do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from nuwaxl.engine.bundle import Bundle  # noqa: E402
from nuwaxl.engine.bundle_schema import Diffusion, Network, Sampler  # noqa: E402
from nuwaxl.export.model import Model  # noqa: E402
from nuwaxl.export.onnx import to_onnx  # noqa: E402

GRAPHS = ("text", "prepare", "step", "decode", "encode")


@pytest.fixture(scope="module")
def bundle(exported: Path) -> Bundle:
    """The exported bundle as the engine opens it."""
    return Bundle.open(exported)


@pytest.fixture(scope="module")
def sessions(bundle: Bundle) -> dict[str, onnxruntime.InferenceSession]:
    """Its graphs on ONNX Runtime."""
    return {
        name: onnxruntime.InferenceSession(str(bundle.file(name)), providers=["CPUExecutionProvider"])
        for name in GRAPHS
    }


def random_inputs(bundle: Bundle, graph: str, batch: int) -> dict[str, np.ndarray]:
    """Random inputs by the manifest's shapes and types."""
    random = np.random.default_rng(5)
    tensors = {}
    for spec in bundle.manifest.graphs[graph].inputs:
        shape = (batch, *spec.shape[1:])
        if spec.dtype == "float32":
            tensors[spec.name] = random.standard_normal(shape).astype(np.float32)
        else:
            tensors[spec.name] = random.integers(0, 40, shape).astype(spec.dtype)
    return tensors


def test_the_engine_opens_it_and_the_manifest_says_what_was_asked(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.name == "tiny"
    assert manifest.network == Network(
        length=4,
        latent_channels=2,
        latent_height=4,
        latent_width=2,
        channels=3,
        height=8,
        width=4,
        prompt_tokens=6,
        prompt_dim=4,
        decode_overlap=1,
    )
    assert manifest.diffusion == Diffusion(100, "scaled_linear", 0.00085, 0.012, "v")
    assert manifest.sampler == Sampler("ddim", 7, 1.5, depth=2)
    # A build's own label, as in 2.15.0+cu132, is not always in the package's version.
    assert manifest.producer["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert manifest.producer["onnxruntime"] == onnxruntime.__version__


def test_no_unfinished_directory_is_left_beside_it(exported: Path) -> None:
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


@pytest.mark.parametrize("name", GRAPHS)
def test_the_graph_on_disk_has_the_manifests_tensors_and_only_the_batch_is_free(bundle: Bundle, name: str) -> None:
    graph = onnx.load(bundle.file(name)).graph
    for of_file, of_manifest in (
        (graph.input, bundle.manifest.graphs[name].inputs),
        (graph.output, bundle.manifest.graphs[name].outputs),
    ):
        found = {
            tensor.name: tuple(d.dim_param or d.dim_value for d in tensor.type.tensor_type.shape.dim)
            for tensor in of_file
        }
        assert found == {spec.name: spec.shape for spec in of_manifest}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_rows_answer_does_not_depend_on_the_rows_beside_it(
    bundle: Bundle, sessions: dict[str, onnxruntime.InferenceSession], name: str
) -> None:
    inputs = random_inputs(bundle, name, 7)
    whole = sessions[name].run(None, inputs)
    for rows in (slice(0, 1), slice(2, 5), slice(6, 7)):
        part = sessions[name].run(None, {key: tensor[rows] for key, tensor in inputs.items()})
        for of_whole, of_part in zip(whole, part, strict=True):
            assert of_part.shape == of_whole[rows].shape
            if of_part.dtype == np.uint8:
                assert np.abs(of_part.astype(int) - of_whole[rows].astype(int)).max() <= 1
            else:
                np.testing.assert_allclose(of_part, of_whole[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("known", [False, True], ids=["global", "local"])
def test_prompt_to_pixels_through_the_bundle_is_what_the_networks_give(
    sessions: dict[str, onnxruntime.InferenceSession], model: Model, known: bool
) -> None:
    torch.manual_seed(3)
    batch, length = 2, 4
    tokens = torch.randint(0, 40, (batch * length + batch, 6))
    condition, mask = torch.randn(batch, length, 2, 4, 2), torch.zeros(batch, length, 1, 4, 2)
    if known:
        mask[:, [0, -1]] = 1.0
    condition = condition * mask
    x, history, noise = torch.randn(3, batch, length, 2, 4, 2).unbind(0)
    timestep, guidance = torch.tensor([90.0, 10.0]), torch.tensor([1.5, 4.0])
    a_x, a_p, c_x, c_0, c_h, c_n = 0.8, -0.6, 0.5, 0.7, -0.2, 0.1

    with torch.no_grad():
        prompt = model.text(tokens)
        of_frames, negative = prompt[: batch * length].reshape(batch, length, 6, 4), prompt[batch * length :]
        everywhere = negative[:, None].expand_as(of_frames)
        cond = model.mtd(x, timestep, of_frames, condition, mask)
        uncond = model.mtd(x, timestep, everywhere, condition, mask)
        x0 = a_x * x + a_p * (uncond + guidance.reshape(-1, 1, 1, 1, 1) * (cond - uncond))
        x_next = c_x * x + c_0 * x0 + c_h * history + c_n * noise
        video = model.tklvae.decode(x_next).permute(0, 1, 3, 4, 2)
        pixels = ((video + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
        latents = model.tklvae.encode(pixels.permute(0, 1, 4, 2, 3) / 127.5 - 1)

    def call(graph: str, **inputs: torch.Tensor | np.ndarray) -> dict[str, np.ndarray]:
        session = sessions[graph]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, {key: np.asarray(t) for key, t in inputs.items()}), strict=True))

    embedded = call("text", tokens=tokens)["prompt"]
    np.testing.assert_allclose(embedded, prompt, rtol=1e-4, atol=1e-5)
    state = call(
        "prepare",
        prompt=embedded[: batch * length].reshape(batch, length, 6, 4),
        negative=embedded[batch * length :],
        condition=condition,
        mask=mask,
    )
    coefficients = torch.tensor([[a_x, a_p, c_x, c_0, c_h, c_n]]).expand(batch, -1)
    stepped = call(
        "step",
        x=x,
        history=history,
        noise=noise,
        timestep=timestep,
        coefficients=coefficients.contiguous(),
        guidance=guidance,
        **state,
    )
    np.testing.assert_allclose(stepped["x0"], x0, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stepped["x_next"], x_next, rtol=1e-4, atol=1e-4)
    decoded = call("decode", latents=stepped["x_next"])["video"]
    assert np.abs(decoded.astype(int) - pixels.numpy().astype(int)).max() <= 1
    assert len(np.unique(decoded)) > 20, "pixels must vary for this to test anything"
    found = call("encode", video=pixels)["latents"]
    np.testing.assert_allclose(found, latents, rtol=1e-4, atol=1e-4)


def test_float16_weights_are_stored_as_such_and_others_are_not_rounded(bundle: Bundle) -> None:
    def large(name: str) -> set[int]:
        tensors = onnx.load(bundle.file(name)).graph.initializer
        return {t.data_type for t in tensors if np.prod(t.dims) >= 256 and t.data_type != onnx.TensorProto.INT64}

    assert large("decode") == {onnx.TensorProto.FLOAT16}
    assert large("text") == {onnx.TensorProto.FLOAT}


def test_nothing_in_the_graphs_tells_where_they_were_made(bundle: Bundle) -> None:
    for name in GRAPHS:
        content = bundle.file(name).read_bytes()
        for trace in (b".py", str(Path.cwd()).encode(), b"stack_trace", b"pkg.torch"):
            assert trace not in content, (name, trace)
        model = onnx.load(bundle.file(name))
        assert not model.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_a_batch_that_cannot_stay_free_is_an_error_and_not_a_fixed_one() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(3, -1)

    with pytest.raises(Exception, match="batch"):
        to_onnx(Fixed(), {"x": torch.zeros(3, 2)}, ["y"])


@pytest.mark.slow
def test_a_second_export_in_another_process_writes_the_same_bytes(
    checkpoint: Path, exported: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    arguments = ["--name", "tiny", "--decode-overlap", "1", "--steps", "7", "--guidance", "1.5", "--sampler", "ddim"]
    arguments += ["--depth", "2", "--with-checkpoint"]
    copy = shutil.copytree(checkpoint, tmp_path / "elsewhere")
    subprocess.run(
        [sys.executable, "-m", "nuwaxl.export.cli", str(copy), str(out), *arguments],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345"},
    )
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in exported.iterdir())
    for path in exported.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
