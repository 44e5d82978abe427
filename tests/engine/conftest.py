"""A tiny bundle with hand-written graphs, so that the whole engine runs without a trained model and torch."""

import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from nuwaxl.engine import Engine
from nuwaxl.engine.bundle import Bundle, write_manifest
from nuwaxl.engine.bundle_schema import Diffusion, Graph, Network, Sampler, TensorSpec, required_tensors
from nuwaxl.engine.devices import parse_devices
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner

NETWORK = Network(
    length=4,
    latent_channels=3,
    latent_height=8,
    latent_width=8,
    channels=3,
    height=16,
    width=16,
    prompt_tokens=3,
    prompt_dim=2,
    decode_overlap=1,
)
DIFFUSION = Diffusion(train_steps=100, schedule="linear", beta_start=1e-3, beta_end=0.1, prediction="v")
WORDS = ["<pad>", "<unk>", "red", "green", "blue", "sky", "sea", "blurry"]

_LATENT = "float[batch,4,3,8,8]"
_GRAPHS = {
    # prompt = tanh(tokens * (0.1, -0.2))
    "text": """text (int64[batch,3] tokens) => (float[batch,3,2] prompt) {
        number = Cast<to=1>(tokens)
        last = Constant<value_ints=[2]>()
        column = Unsqueeze(number, last)
        scale = Constant<value_floats=[0.1, -0.2]>()
        scaled = Mul(column, scale)
        prompt = Tanh(scaled)
    }""",
    # The state: the sums of the prompts of every frame and of the negative one, and the known frames.
    "prepare": f"""prepare (float[batch,4,3,2] prompt, float[batch,3,2] negative, {_LATENT} condition,
            float[batch,4,1,8,8] mask)
        => (float[batch,4,1,1,1] wanted, float[batch,1,1,1,1] unwanted, {_LATENT} known) {{
        words = Constant<value_ints=[2,3]>()
        sums = ReduceSum<keepdims=0>(prompt, words)
        shape = Constant<value_ints=[0,4,1,1,1]>()
        wanted = Reshape(sums, shape)
        words_n = Constant<value_ints=[1,2]>()
        sums_n = ReduceSum<keepdims=0>(negative, words_n)
        shape_n = Constant<value_ints=[-1,1,1,1,1]>()
        unwanted = Reshape(sums_n, shape_n)
        known = Mul(condition, mask)
    }}""",
    # pred(p) = tanh(x + mean over frames of (x + known) + t/100 + p); the rest is as in every step graph.
    "step": f"""step ({_LATENT} x, {_LATENT} history, {_LATENT} noise, float[batch] timestep,
            float[batch,6] coefficients, float[batch] guidance,
            float[batch,4,1,1,1] wanted, float[batch,1,1,1,1] unwanted, {_LATENT} known)
        => ({_LATENT} x_next, {_LATENT} x0) {{
        both = Add(x, known)
        frames = Constant<value_ints=[1]>()
        mean = ReduceMean<keepdims=1>(both, frames)
        column = Constant<value_ints=[-1,1,1,1,1]>()
        hundred = Constant<value_float=100.0>()
        t_column = Reshape(timestep, column)
        t = Div(t_column, hundred)
        mixed = Add(x, mean)
        base = Add(mixed, t)
        with = Add(base, wanted)
        without = Add(base, unwanted)
        cond = Tanh(with)
        uncond = Tanh(without)
        scale = Reshape(guidance, column)
        difference = Sub(cond, uncond)
        scaled = Mul(scale, difference)
        pred = Add(uncond, scaled)
        rows = Constant<value_ints=[-1,6,1,1,1,1]>()
        table = Reshape(coefficients, rows)
        a_x, a_p, c_x, c_0, c_h, c_n = Split<axis=1,num_outputs=6>(table)
        one = Constant<value_ints=[1]>()
        ax = Squeeze(a_x, one)
        ap = Squeeze(a_p, one)
        cx = Squeeze(c_x, one)
        c0 = Squeeze(c_0, one)
        ch = Squeeze(c_h, one)
        cn = Squeeze(c_n, one)
        x_part = Mul(ax, x)
        p_part = Mul(ap, pred)
        x0 = Add(x_part, p_part)
        n1 = Mul(cx, x)
        n2 = Mul(c0, x0)
        n3 = Mul(ch, history)
        n4 = Mul(cn, noise)
        s1 = Add(n1, n2)
        s2 = Add(s1, n3)
        x_next = Add(s2, n4)
    }}""",
    # video = clip(128 + 50 * latents), every latent pixel twice in height and width.
    "decode": f"""decode ({_LATENT} latents) => (uint8[batch,4,16,16,3] video) {{
        last = Transpose<perm=[0,1,3,4,2]>(latents)
        spread = Constant<value_ints=[0,4,8,1,8,1,3]>()
        cells = Reshape(last, spread)
        twice = Constant<value_ints=[1,4,8,2,8,2,3]>()
        wide = Expand(cells, twice)
        size = Constant<value_ints=[0,4,16,16,3]>()
        pixels = Reshape(wide, size)
        gain = Constant<value_float=50.0>()
        offset = Constant<value_float=128.0>()
        louder = Mul(pixels, gain)
        bright = Add(louder, offset)
        low = Constant<value_float=0.0>()
        high = Constant<value_float=255.0>()
        clipped = Clip(bright, low, high)
        rounded = Round(clipped)
        video = Cast<to=2>(rounded)
    }}""",
    "encode": f"""encode (uint8[batch,4,16,16,3] video) => ({_LATENT} latents) {{
        number = Cast<to=1>(video)
        starts = Constant<value_ints=[0,0]>()
        ends = Constant<value_ints=[16,16]>()
        axes = Constant<value_ints=[2,3]>()
        steps = Constant<value_ints=[2,2]>()
        small = Slice(number, starts, ends, axes, steps)
        offset = Constant<value_float=128.0>()
        gain = Constant<value_float=50.0>()
        centred = Sub(small, offset)
        scaled = Div(centred, gain)
        latents = Transpose<perm=[0,1,4,2,3]>(scaled)
    }}""",
}
_STATE = {
    "wanted": ("batch", 4, 1, 1, 1),
    "unwanted": ("batch", 1, 1, 1, 1),
    "known": ("batch", 4, 3, 8, 8),
}


def _halve_state(graph: onnx.GraphProto) -> None:
    """Make the state float16, which `prepare` gives and `step` takes."""
    given = graph.name == "prepare"
    for value in graph.output if given else graph.input:
        if value.name not in _STATE:
            continue
        wide = f"{value.name}_wide"
        for node in graph.node:
            names = node.output if given else node.input
            names[:] = [wide if name == value.name else name for name in names]
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        if given:
            graph.node.append(onnx.helper.make_node("Cast", [wide], [value.name], to=onnx.TensorProto.FLOAT16))
        else:
            graph.node.insert(0, onnx.helper.make_node("Cast", [value.name], [wide], to=onnx.TensorProto.FLOAT))


def write_tiny_bundle(folder: Path, precision: str = "fp32") -> None:
    """Write the bundle's files and its manifest; in "fp16" the state is float16, the rest as in "fp32"."""
    graphs = {}
    state = [TensorSpec(name, shape, "float32" if precision == "fp32" else "float16") for name, shape in _STATE.items()]
    for name, (inputs, outputs) in required_tensors(NETWORK).items():
        model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> {_GRAPHS[name]}')
        if precision == "fp16" and name in ("prepare", "step"):
            _halve_state(model.graph)
        onnx.checker.check_model(model)
        onnx.save(model, folder / f"{name}.onnx")
        extra_inputs = state if name == "step" else []
        extra_outputs = state if name == "prepare" else []
        graphs[name] = Graph(f"{name}.onnx", None, (*inputs, *extra_inputs), (*outputs, *extra_outputs))
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    write_manifest(
        folder,
        name="tiny",
        producer={"nuwaxl": "0"},
        precision=precision,
        network=NETWORK,
        diffusion=DIFFUSION,
        sampler=Sampler(name="dpmpp_2m", steps=5, guidance=2.0, depth=1),
        graphs=graphs,
    )


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measured costs go into a folder of the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUWAXL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle's directory; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("tiny_bundle")
    write_tiny_bundle(folder)
    return folder


@pytest.fixture
def own_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture
def story_file(tmp_path: Path) -> Path:
    """A story of three scenes."""
    path = tmp_path / "story.toml"
    path.write_text(
        'fps = 8\n[[scene]]\nat = 0\nprompt = "red sky"\n[[scene]]\nat = 9\nprompt = "blue sea"\n'
        '[[scene]]\nat = 20\nprompt = "green"\n'
    )
    return path


@dataclass(frozen=True)
class TinyModel:
    """The tiny bundle's arithmetic once more, in plain float64 numpy, for one segment."""

    def embed(self, prompt: str) -> float:
        """Sum of the prompt's embedding."""
        ids = [WORDS.index(word) for word in prompt.split()][:3]
        ids += [0] * (3 - len(ids))
        return float(sum(np.tanh(0.1 * i) + np.tanh(-0.2 * i) for i in ids))

    def predict(
        self, x: np.ndarray, t: int, prompts: list[str], negative: str, guidance: float, known: np.ndarray
    ) -> np.ndarray:
        """Guided prediction for x (L, c, h, w)."""
        base = x + (x + known).mean(axis=0, keepdims=True) + t / 100
        cond = np.tanh(base + np.array([self.embed(p) for p in prompts])[:, None, None, None])
        uncond = np.tanh(base + self.embed(negative))
        return uncond + guidance * (cond - uncond)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents (n, c, h, w) to video (n, H, W, 3)."""
        video = np.clip(np.round(latents * 50 + 128), 0, 255).astype(np.uint8)
        return video.transpose(0, 2, 3, 1).repeat(2, axis=1).repeat(2, axis=2)


@pytest.fixture
def tiny_model() -> TinyModel:
    """The reference for the tiny bundle."""
    return TinyModel()


class Hooked(OnnxRuntimeRunner):
    """A runner that calls hooks before its steps and its decodes."""

    before_step: Callable[[], None] = staticmethod(lambda: None)
    before_decode: Callable[[], None] = staticmethod(lambda: None)

    def step(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.before_step()
        return super().step(inputs)

    def decode(self, latents: Any) -> Any:
        self.before_decode()
        return super().decode(latents)


@pytest.fixture
def hooked_engine(tiny_bundle: Path) -> Callable[..., Engine]:
    """Makes an engine whose runners call the hooks given; not in measuring costs, which is done before."""

    def make(devices: str = "cpu:2", measured: bool = True, **hooks: Callable[[], None]) -> Engine:
        bundle, workers = Bundle.open(tiny_bundle), parse_devices(devices)
        runners = tuple(Hooked(bundle, worker) for worker in workers)
        engine = Engine(bundle, workers, runners)
        if measured:
            engine.costs()
        for runner in runners:
            for name, hook in hooks.items():
                setattr(runner, name, hook)
        return engine

    return make


def worker_threads() -> list[str]:
    """Names of the worker threads alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("nuwaxl ")]


@pytest.fixture
def no_worker_is_left() -> Iterator[None]:
    """No worker thread outlives the test that started it."""
    yield
    assert worker_threads() == []
