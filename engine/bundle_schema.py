"""What a bundle's manifest.json says, as frozen types.

A bundle is a directory: manifest.json, five ONNX graphs, the weights of large ones beside them, and a tokenizer.
The manifest is the only contract between the code that makes bundles and the engine that runs them, so every key is
required and unknown keys are refused (manifest_json.py reads it).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

FORMAT = "nuwaxl-bundle"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"

ScheduleName = Literal["scaled_linear", "linear", "cosine", "zero_terminal_snr"]
PredictionName = Literal["v", "eps"]
SamplerName = Literal["dpmpp_2m", "ddim", "ddpm"]
PrecisionName = Literal["fp32", "fp16", "bf16"]
SCHEDULES: tuple[ScheduleName, ...] = ("scaled_linear", "linear", "cosine", "zero_terminal_snr")
PREDICTIONS: tuple[PredictionName, ...] = ("v", "eps")
SAMPLERS: tuple[SamplerName, ...] = ("dpmpp_2m", "ddim", "ddpm")
PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "fp16", "bf16")
# Useful scales are below 30. Devices take them as float32, and latents leave its range long before the scale does.
MAX_GUIDANCE = 1000.0
MIN_LENGTH = 3  # of a segment: a local diffusion is given both ends, and draws what is between


@dataclass(frozen=True)
class Network:
    """Sizes of the networks, in the paper's symbols (given in brackets)."""

    length: int  # [L] frames of one diffusion, both ends included
    latent_channels: int  # [c]
    latent_height: int  # [h]
    latent_width: int  # [w]
    channels: int  # [C]
    height: int  # [H]
    width: int  # [W]
    prompt_tokens: int  # [l_p]
    prompt_dim: int  # [d_p]
    decode_overlap: int  # context frames dropped on each side of a decode window

    @property
    def large(self) -> bool:
        """Whether a segment has more than 2^19 pixels: on a CPU to decode one takes gigabytes and a minute."""
        return self.length * self.height * self.width > 2**19


@dataclass(frozen=True)
class Diffusion:
    """The noise schedule and what the network predicts (paper, eq. 3-5)."""

    train_steps: int
    schedule: ScheduleName
    beta_start: float
    beta_end: float
    prediction: PredictionName


@dataclass(frozen=True)
class Sampler:
    """Defaults of a render: sampler, number of denoising steps, classifier-free guidance scale, depth of the tree."""

    name: SamplerName
    steps: int
    guidance: float
    depth: int  # [m] that the network was trained for; a film that its tree does not span takes a deeper one


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph. The first dimension is the name "batch", the others are numbers."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class Graph:
    """One ONNX graph of the bundle."""

    file: str
    data: str | None  # the file that holds its large weights, None where the graph itself holds all
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class FileEntry:
    """What a file must hash to and how long it must be."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Plan:
    """A TensorRT engine in the bundle: one graph built for some GPUs (plans.py). All but `file` and `accepted_on` goes
    into the key that names the file."""

    graph: str
    file: str
    runtime: str  # "tensorrt" or "tensorrt-rtx"
    version: str  # of the runtime; a plan runs on no other
    sm: tuple[int, ...]  # compute capabilities without the dot, 89 for 8.9
    batches: tuple[int, ...]  # one optimisation profile each, in this order
    flags: tuple[str, ...]  # of the build, sorted: "refit"
    graph_sha256: str  # of the graph it was built from, weights included
    kernels_sha256: str  # of the kernels that it holds as plugins, "" for none
    accepted_on: tuple[str, ...]  # GPUs on which its answers were compared with ONNX Runtime's, sorted; none at first


@dataclass(frozen=True)
class Manifest:
    """The whole of manifest.json, checked."""

    name: str
    producer: Mapping[str, str]  # versions of what made the bundle: {"nuwaxl": "0.1.0", "torch": ...}
    precision: PrecisionName  # of the networks' weights and activations; the graphs' required tensors do not change
    network: Network
    diffusion: Diffusion
    sampler: Sampler
    graphs: Mapping[str, Graph]
    files: Mapping[str, FileEntry]
    plans: tuple[Plan, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The manifest as plain JSON values. A bundle without plans says nothing of them."""
        values = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        if not self.plans:
            del values["plans"]
        return values


def required_tensors(network: Network) -> dict[str, tuple[list[TensorSpec], list[TensorSpec]]]:
    """Inputs and outputs every bundle's graphs must have, by graph name; the state tensors come on top.

    prepare has the state tensors as its outputs, step takes them by the same names as further inputs.
    """
    n = network
    latent = (n.length, n.latent_channels, n.latent_height, n.latent_width)
    pixels = (n.length, n.height, n.width, n.channels)
    prompt = (n.prompt_tokens, n.prompt_dim)

    def spec(name: str, *shape: int, dtype: str = "float32") -> TensorSpec:
        return TensorSpec(name, ("batch", *shape), dtype)

    return {
        "text": ([spec("tokens", n.prompt_tokens, dtype="int64")], [spec("prompt", *prompt)]),
        "prepare": (
            [
                spec("prompt", n.length, *prompt),
                spec("negative", *prompt),
                spec("condition", *latent),
                spec("mask", n.length, 1, n.latent_height, n.latent_width),
            ],
            [],
        ),
        "step": (
            [
                spec("x", *latent),
                spec("history", *latent),
                spec("noise", *latent),
                spec("timestep"),
                spec("coefficients", 6),
                spec("guidance"),
            ],
            [spec("x_next", *latent), spec("x0", *latent)],
        ),
        "decode": ([spec("latents", *latent)], [spec("video", *pixels, dtype="uint8")]),
        "encode": ([spec("video", *pixels, dtype="uint8")], [spec("latents", *latent)]),
    }
