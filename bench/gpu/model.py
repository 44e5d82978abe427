"""The network that is measured: `sd15` with random weights at a picture size, and a tiny one for the tests."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path

import torch

from nuwaxl.bench.plain import job_of
from nuwaxl.engine import Bundle, Engine, Story
from nuwaxl.engine.bundle_schema import Diffusion, Manifest, Sampler
from nuwaxl.engine.devices import Worker, available_cores, parse_devices
from nuwaxl.engine.job import Job
from nuwaxl.engine.request import Task
from nuwaxl.errors import InputError
from nuwaxl.export.model import Model
from nuwaxl.export.torch_runner.device import parse
from nuwaxl.export.torch_runner.runner import TorchRunner
from nuwaxl.train.config import DiffusionConfig, ModelConfig, MTDConfig, SamplerConfig, TextConfig, TKLVAEConfig
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.networks.text import CLIPText
from nuwaxl.train.networks.tklvae import TKLVAE
from nuwaxl.train.presets import SD15
from nuwaxl.train.tokenizer import train_tokenizer

# Every part of the real one, in a second on a CPU.
TINY = ModelConfig(
    tklvae=TKLVAEConfig(latent_channels=4, block_channels=(4, 8), layers_per_block=1, norm_groups=2, temporal_heads=2),
    mtd=MTDConfig(
        length=4,
        latent_height=4,
        latent_width=4,
        block_channels=(8, 16),
        attention=(True, False),
        layers_per_block=1,
        heads=2,
        feed_forward=1,
        norm_groups=2,
        prompt_tokens=8,
        prompt_dim=8,
        condition_channels=4,
    ),
    text=TextConfig(vocabulary=300, tokens=8, dim=8, layers=1, heads=2),
    diffusion=DiffusionConfig(),
    sampler=SamplerConfig(steps=3),
)


@dataclass(frozen=True)
class Workload:
    """What is rendered: `frames` of `pixels` x `pixels` by the networks of `config`."""

    config: ModelConfig
    pixels: int
    frames: int

    @property
    def steps(self) -> int:
        return self.config.sampler.steps


def workload(pixels: int, *, tiny: bool) -> Workload:
    """1024 frames with `sd15` (issue's and paper's job), or a few with the tiny model."""
    config = TINY if tiny else SD15
    side = pixels // config.tklvae.downsampling
    mtd = replace(config.mtd, latent_height=side, latent_width=side)
    return Workload(replace(config, mtd=mtd), pixels, 20 if tiny else 1024)


def networks(config: ModelConfig, device: torch.device) -> tuple[CLIPText, MTD, TKLVAE]:
    """Fresh random networks, made on the device, the same every time."""
    torch.manual_seed(0)
    with device:
        text, mtd, tklvae = CLIPText(config.text), MTD(config.mtd), TKLVAE(config.tklvae)
    for network in (text, mtd, tklvae):
        network.eval().requires_grad_(False)
    return text, mtd, tklvae


def story() -> Story:
    """The bundled story, as nuwaxl-bench renders it."""
    with resources.as_file(resources.files("nuwaxl.bench") / "stories" / "demo.toml") as path:
        return Story.load(path)


def open_engine(work: Workload, devices: str, folder: Path, bundles: Sequence[Path] = ()) -> Engine:
    """An engine for the workload: on one device of torch's with random networks in memory, else with that one of the
    exported `bundles` that is of its size.

    Args:
        folder: where the tokenizer is written.

    Raises:
        InputError: no such device, another than torch's without a bundle, or a bundle of another network or sampler.
    """
    if not devices.startswith("torch:"):
        for path in bundles:
            bundle = Bundle.open(path)
            if bundle.manifest.network.height == work.pixels:
                _check_same(bundle, _in_memory(work, folder))
                return Engine.open(bundle, devices=devices)
        raise InputError(
            expected=f"an exported bundle of {work.pixels} x {work.pixels} pixels for {devices}",
            found=f"{len(bundles)} others",
            fix="export one and name it by --bundle",
        )
    (worker,) = parse_devices(devices)
    device = parse(devices.partition(":")[2])
    text, mtd, tklvae = networks(work.config, device.device)
    runner = TorchRunner(text, mtd, tklvae, device)
    return Engine(_in_memory(work, folder), (_own(worker),), (runner,))


def new_job(work: Workload, folder: Path, steps: int | None = None) -> Job:
    """The workload as the engine resolves it, to be rendered by other means; in fewer steps, where they are given."""
    return job_of(_in_memory(work, folder), Task(story(), frames=work.frames, steps=steps))


def _check_same(bundle: Bundle, wanted: Bundle) -> None:
    """What a step and a render cost must not depend on which of the two it is."""
    found, expected = (
        (replace(each.manifest.network, decode_overlap=0), each.manifest.diffusion, each.manifest.sampler)
        for each in (bundle, wanted)
    )
    for mine, other in zip(found, expected, strict=True):
        if mine != other:
            raise InputError(
                expected=f"{other}",
                found=f"{mine} in the bundle {bundle.path}",
                fix="export the checkpoint that nuwaxl-train init --random sd15 makes, for this size",
            )


def _own(worker: Worker) -> Worker:
    return replace(worker, threads=available_cores(), alone=True)


def _in_memory(work: Workload, folder: Path) -> Bundle:
    """What the engine asks of a bundle, without its graphs: sizes, defaults and tokenizer."""
    config = work.config
    folder.mkdir(parents=True, exist_ok=True)
    text = config.text
    tokenizer = train_tokenizer(["a story of some words"], min(text.vocabulary, 1000), text.tokens)
    tokenizer.save(str(folder / "tokenizer.json"))
    of = config.diffusion
    # A view of the configuration alone: the networks are not needed for the sizes.
    network = Model.network(_Sizes(config), decode_overlap=0)  # type: ignore[arg-type]
    manifest = Manifest(
        name=f"random-{work.pixels}",
        producer={"torch": torch.__version__},
        precision="fp32",
        network=network,
        diffusion=Diffusion(of.train_steps, of.schedule, of.beta_start, of.beta_end, of.prediction),
        sampler=Sampler(**asdict(config.sampler)),
        graphs={},
        files={},
    )
    # Costs are kept by this: never from a run before.
    return Bundle(folder, manifest, sha256=f"{work.pixels}-{torch.initial_seed()}-{id(manifest)}")


@dataclass(frozen=True)
class _Sizes:
    config: ModelConfig
