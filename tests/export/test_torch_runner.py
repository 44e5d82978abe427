"""The runner on PyTorch: the same answers as the networks and as ONNX Runtime, whatever the batch is made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nuwaxl.engine import Bundle, Engine, Story  # noqa: E402
from nuwaxl.engine.devices import Worker  # noqa: E402
from nuwaxl.engine.runners.base import Denoising, Runner, Segments  # noqa: E402
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner  # noqa: E402
from nuwaxl.engine.runners.slots import bucket  # noqa: E402
from nuwaxl.errors import DeviceLost, InputError  # noqa: E402
from nuwaxl.export.model import CHECKPOINT_FILES, load_model  # noqa: E402
from nuwaxl.export.samples import graph_sources  # noqa: E402
from nuwaxl.export.torch_runner import open_runner, precision  # noqa: E402
from nuwaxl.export.torch_runner.device import parse  # noqa: E402
from nuwaxl.export.torch_runner.layers import Upsampling  # noqa: E402
from nuwaxl.export.torch_runner.step import Denoiser, Prepare, Step  # noqa: E402
from nuwaxl.train.networks.spatial import Upsample  # noqa: E402

from . import recorded_cuda  # noqa: E402


@dataclass(frozen=True)
class Entry:
    """A device, the relative error allowed in latents, and the difference allowed in a pixel; recorded: whether the
    host stands in for it."""

    device: str
    latents: float
    pixel: int
    recorded: bool = False


def entry(device: str, latents: float, pixel: int, *marks: pytest.MarkDecorator) -> object:
    return pytest.param(Entry(device, latents, pixel), id=device, marks=marks)


@pytest.fixture
def on(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Entry:
    if request.param.recorded:
        recorded_cuda.install(monkeypatch)
    return cast(Entry, request.param)


# Half precision: a step of the tiny networks, whose weights are large, then 7 steps and the decoder.
DEVICES = [
    entry("cpu", 1e-5, 1),
    entry("cpu/compile", 1e-5, 1, pytest.mark.slow),
    pytest.param(Entry("cuda:0/float32/eager", 1e-5, 1, recorded=True), id="recorded"),
    entry("cuda:0/float32/eager", 1e-4, 1, pytest.mark.gpu),
    entry("cuda:0/float16/eager", 1e-2, 24, pytest.mark.gpu),
    entry("cuda:0/bfloat16/eager", 6e-2, 96, pytest.mark.gpu),
]
COMPILED = entry("cuda:0/bfloat16/compile", 6e-2, 96, pytest.mark.gpu)  # a minute, so a step once, and decoding
every_device = pytest.mark.parametrize("on", DEVICES, indirect=True)
compiled_too = pytest.mark.parametrize("on", [*DEVICES, COMPILED], indirect=True)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def bundle(exported: Path) -> Bundle:
    return Bundle.open(exported)


def segments(bundle: Bundle, b: int, seed: int = 0) -> Segments:
    """Random segments, global and local in turn."""
    n, random = bundle.manifest.network, np.random.default_rng(seed)
    latent = (b, n.length, n.latent_channels, n.latent_height, n.latent_width)
    mask = np.zeros((b, n.length, 1, *latent[3:]), np.float32)
    mask[1::2, [0, -1]] = 1.0

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape).astype(np.float32)

    prompt = (n.prompt_tokens, n.prompt_dim)
    return Segments(normal(*latent), normal(b, n.length, *prompt), normal(b, *prompt), normal(*latent) * mask, mask)


def step_arguments(b: int, seed: int, shape: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    coefficients = random.standard_normal((b, 6)).astype(np.float32) / 2
    noise = random.standard_normal((b, *shape)).astype(np.float32)
    return [random.integers(0, 100, b), coefficients, random.uniform(1, 3, b).astype(np.float32), noise]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_step_is_the_networks(checkpoint: Path, batch: int) -> None:
    model = load_model(checkpoint)
    step_source = next(source for source in graph_sources(model) if source.name == "step")
    prepare_source = next(source for source in graph_sources(model) if source.name == "prepare")
    with torch.no_grad():
        # The samples draw the segments first, so a generator of the same seed gives both the same ones.
        of_segments = prepare_source.sample(batch, torch.Generator().manual_seed(5)).inputs
        sample = step_source.sample(batch, torch.Generator().manual_seed(5))
        denoiser = Denoiser(model.mtd)
        state = Prepare(denoiser)(*of_segments.values())
        fixed = [sample.inputs[name] for name in ("x", "history", "noise", "timestep", "coefficients", "guidance")]
        found = Step(denoiser)(*fixed, *state)
    for tensor, expected in zip(found, sample.answer().values(), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 5)])
def test_an_upsampling_is_the_convolution_of_the_enlarged_frames(size: tuple[int, int]) -> None:
    upsample, x = Upsample(6), torch.randn(2, 6, *size)
    with torch.no_grad():
        found, expected = Upsampling(upsample)(x), upsample(x)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


@compiled_too
def test_a_batch_that_segments_join_and_leave_gives_each_what_it_gets_alone(bundle: Bundle, on: Entry) -> None:
    """Each alone by ONNX Runtime in float32, and alone on the same device: parity, and batch invariance."""
    everything, shape = segments(bundle, 5), segments(bundle, 1).x.shape[1:]
    moves = [step_arguments(5, seed, shape) for seed in range(3)]
    order, first = [2, 0, 3, 4], {2: 0, 0: 0, 3: 1, 4: 1}  # the step that each begins at

    def alone(runner: Runner, slot: int) -> np.ndarray:
        denoising = runner.start(everything.part([slot]))
        for move in moves[first[slot] :]:
            denoising.step(*(argument[[slot]] for argument in move))
        return denoising.latents([0])[0]

    runner = open_runner(bundle, on.device, threads=1)
    denoising = runner.start(everything.part([0, 1, 2]))
    denoising.step(*(argument[:3] for argument in moves[0]))
    denoising.keep([2, 0])
    denoising.join(everything.part([3, 4]))
    for move in moves[1:]:
        denoising.step(*(argument[order] for argument in move))
    together = denoising.latents(range(4))
    exact = OnnxRuntimeRunner(bundle, Worker("cpu#0", threads=1, alone=True))
    for slot, found in zip(order, together, strict=True):
        assert relative(found, alone(exact, slot)) < on.latents
        assert relative(found, alone(runner, slot)) < on.latents


def test_segments_that_cannot_join_leave_the_others_as_they_were(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = open_runner(bundle, "cpu", threads=1)
    everything, shape = segments(bundle, 3), segments(bundle, 1).x.shape[1:]
    move = [argument[:1] for argument in step_arguments(3, 0, shape)]
    untouched = runner.start(everything.part([0]))
    untouched.step(*move)

    denoising, prepare, calls = runner.start(everything.part([0])), runner._prepare, []

    def failing(*inputs: torch.Tensor) -> object:
        calls.append(inputs)
        if len(calls) == 2:
            raise MemoryError
        return prepare(*inputs)

    monkeypatch.setattr(runner, "_prepare", failing)
    with pytest.raises(MemoryError):
        denoising.join(everything.part([1, 2]))
    denoising.step(*move)
    assert np.array_equal(denoising.latents([0]), untouched.latents([0]))
    with pytest.raises(IndexError):
        denoising.latents([1])


def test_a_device_that_fails_for_good_is_lost(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = open_runner(bundle, "cpu", threads=1)

    def failing(*inputs: torch.Tensor) -> object:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(runner, "_prepare", failing)
    with pytest.raises(DeviceLost, match="expected cpu to work; found AcceleratorError: an illegal memory access"):
        runner.start(segments(bundle, 1))


def test_two_batches_at_once_do_not_disturb_each_other(bundle: Bundle) -> None:
    runner = open_runner(bundle, "cpu", threads=1)
    everything, shape = segments(bundle, 3), segments(bundle, 1).x.shape[1:]
    move = step_arguments(3, 0, shape)

    def moved(slots: list[int]) -> Denoising:
        denoising = runner.start(everything.part(slots))
        denoising.step(*(argument[slots] for argument in move))
        return denoising

    expected = moved([0]).latents([0])
    first = runner.start(everything.part([0]))
    other = moved([1, 2])
    first.step(*(argument[[0]] for argument in move))
    assert np.array_equal(first.latents([0]), expected)
    assert other.latents([0, 1]).shape == (2, *shape)


@compiled_too
def test_text_decoding_and_encoding_are_those_of_onnx_runtime(bundle: Bundle, on: Entry) -> None:
    ours = open_runner(bundle, on.device, threads=1)
    theirs = OnnxRuntimeRunner(bundle, Worker("cpu#0", threads=1, alone=True))
    tokens = np.random.default_rng(0).integers(0, 40, (3, bundle.manifest.network.prompt_tokens))
    np.testing.assert_allclose(ours.encode_text(tokens), theirs.encode_text(tokens), rtol=1e-4, atol=1e-4)
    latents = segments(bundle, 2).x
    video = ours.decode(latents)
    assert np.abs(video.astype(int) - theirs.decode(latents)).max() <= on.pixel
    assert relative(ours.encode(video), theirs.encode(video)) < on.latents


@every_device
def test_a_render_gives_the_frames_of_onnx_runtime(bundle: Bundle, on: Entry) -> None:
    story = Story([(0, "a red fox"), (6, "a blue bear")])
    videos = []
    for devices in ("cpu", f"torch:{on.device}"):
        with Engine.open(bundle, devices=devices) as engine:
            clips = engine.render(story, frames=20, seed=3, sampler="ddpm")
            videos.append(np.concatenate([clip.frames for clip in clips]).astype(int))
    assert videos[0].std() > 5  # there is something to see
    assert np.abs(videos[0] - videos[1]).max() <= on.pixel


def test_bfloat16_is_near_float32(bundle: Bundle) -> None:
    latents = []
    for options in ("cpu", "cpu/bfloat16"):
        denoising = open_runner(bundle, options, threads=1).start(segments(bundle, 2))
        denoising.step(*step_arguments(2, 0, segments(bundle, 1).x.shape[1:]))
        latents.append(denoising.latents([0, 1]))
    error = np.linalg.norm(latents[1] - latents[0]) / np.linalg.norm(latents[0])
    assert 1e-6 < error < 3e-2  # it is another type, and near


def test_a_bundle_without_the_checkpoint_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    import dataclasses

    files = {name: entry for name, entry in bundle.manifest.files.items() if name not in CHECKPOINT_FILES}
    bare = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, files=files))
    with pytest.raises(InputError, match="export it with nuwaxl-export --with-checkpoint"):
        open_runner(bare, "cpu", threads=1)


@pytest.mark.parametrize(
    "device", ["", "gpu", "cpu:1", "cuda:x", "cpu/int8", "cpu/float32/float16", "cpu/eager/compile"]
)
def test_another_device_is_refused_with_what_there_is(device: str) -> None:
    with pytest.raises(InputError, match="expected torch:cpu or torch:cuda:N"):
        parse(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing only where it is")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected the GPU cuda:0 .*; found 0 of them"):
        parse("cuda:0")


def test_options_after_the_device_choose_type_and_compilation() -> None:
    assert [(d.dtype, d.compiled) for d in map(parse, ("cpu", "cpu/float16/compile", "cpu/eager"))] == [
        (torch.float32, False),
        (torch.float16, True),
        (torch.float32, False),
    ]
    assert [precision(device) for device in ("cpu", "cpu/float16", "cpu/bfloat16")] == ["fp32", "fp16", "bf16"]


def test_batches_run_in_few_sizes_on_a_gpu_and_as_they_are_on_the_cpu(bundle: Bundle) -> None:
    assert [bucket(n) for n in range(1, 18)] == [*range(1, 9), 10, 10, 12, 12, 14, 14, 16, 16, 20]
    runner = open_runner(bundle, "cpu", threads=1)
    assert [runner.rows(n) for n in range(1, 8)] == [1, 2, 3, 4, 5, 6, 7]
    seen: list[int] = []
    stepped = runner._step

    def step(x: torch.Tensor, *rest: torch.Tensor) -> Any:
        seen.append(len(x))
        return stepped(x, *rest)

    runner._step = step
    denoising = runner.start(segments(bundle, 5))
    denoising.step(*step_arguments(5, 0, segments(bundle, 1).x.shape[1:]))
    denoising.keep([0, 2, 4])
    denoising.step(*step_arguments(3, 0, segments(bundle, 1).x.shape[1:]))
    assert seen == [5, 3]


def test_on_a_gpu_a_batch_is_padded_and_each_size_captured_once(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded_cuda.install(monkeypatch)
    runner = open_runner(bundle, "cuda:0/float32/eager", threads=1)
    assert [runner.rows(n) for n in (1, 7, 8, 9, 17)] == [1, 7, 8, 10, 20]
    seen: list[int] = []
    stepped = runner._step

    def step(x: torch.Tensor, *rest: torch.Tensor) -> Any:
        seen.append(len(x))
        return stepped(x, *rest)

    runner._step = step
    everything, shape = segments(bundle, 9), segments(bundle, 1).x.shape[1:]
    for _ in range(2):  # the second batch has the memory of the first, and its graphs
        denoising = runner.start(everything)
        for count in (9, 9, 8, 7):
            denoising.keep(range(count))
            denoising.step(*step_arguments(count, 0, shape))
        del denoising
    assert seen == [10, 10, 10, 8, 8, 8, 7, 7, 7]  # twice to warm up, then to be captured


def test_a_batch_that_grew_forgets_the_graphs_of_its_old_memory(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything, shape = segments(bundle, 5), segments(bundle, 1).x.shape[1:]

    def moved(runner: Runner) -> np.ndarray:
        denoising = runner.start(everything.part([0, 1]))
        denoising.step(*step_arguments(2, 0, shape))
        denoising.join(everything.part([2, 3, 4]))
        denoising.keep([0, 1])
        denoising.step(*step_arguments(2, 1, shape))
        return denoising.latents([0, 1])

    expected = moved(open_runner(bundle, "cpu/float32", threads=1))
    recorded_cuda.install(monkeypatch)
    assert relative(moved(open_runner(bundle, "cuda:0/float32/eager", threads=1)), expected) < 1e-5
