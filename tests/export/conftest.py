"""A tiny checkpoint whose every layer matters, and the one bundle exported from it."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from nuwaxl.export.cli import main  # noqa: E402
from nuwaxl.export.model import Model, load_model  # noqa: E402
from nuwaxl.train.checkpoint import save_weights  # noqa: E402
from nuwaxl.train.config import (  # noqa: E402
    DiffusionConfig,
    ModelConfig,
    MTDConfig,
    SamplerConfig,
    TextConfig,
    TKLVAEConfig,
)
from nuwaxl.train.networks.mtd import MTD  # noqa: E402
from nuwaxl.train.networks.text import CLIPText  # noqa: E402
from nuwaxl.train.networks.tklvae import TKLVAE  # noqa: E402
from nuwaxl.train.tokenizer import train_tokenizer  # noqa: E402

CONFIG = ModelConfig(
    tklvae=TKLVAEConfig(latent_channels=2, block_channels=(4, 8), layers_per_block=1, norm_groups=2, temporal_heads=2),
    mtd=MTDConfig(
        length=4,
        latent_channels=2,
        latent_height=4,
        latent_width=2,
        block_channels=(8,),
        attention=(True,),
        layers_per_block=1,
        heads=2,
        feed_forward=1,
        norm_groups=2,
        prompt_tokens=6,
        prompt_dim=4,
        condition_channels=3,
    ),
    text=TextConfig(vocabulary=300, tokens=6, dim=4, layers=1, heads=2),
    diffusion=DiffusionConfig(train_steps=100, prediction="v"),
    sampler=SamplerConfig(name="dpmpp_2m", steps=4, guidance=2.5),
)


def randomise(network: torch.nn.Module, seed: int) -> None:
    """Move every parameter, so that no layer is the identity or zero, as some are at initialisation."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))


def write_checkpoint(folder: Path) -> None:
    """Write the tiny checkpoint, in float16 but for the text encoder."""
    folder.mkdir()
    CONFIG.save(folder / "config.json")
    networks = {
        "text": lambda: CLIPText(CONFIG.text),
        "mtd": lambda: MTD(CONFIG.mtd),
        "tklvae": lambda: TKLVAE(CONFIG.tklvae),
    }
    for seed, (name, make) in enumerate(networks.items()):
        # Before they are made: of so few pixels, one that another model's rounding turns is more than the gate allows.
        torch.manual_seed(seed)
        network = make()
        randomise(network, seed)
        if isinstance(network, TKLVAE):
            network.latent_shift.copy_(torch.tensor([0.3, -0.2]))
            network.latent_scale.copy_(torch.tensor([0.7, 1.9]))
        state = network.state_dict()
        save_weights(
            state if name == "text" else {key: tensor.half() for key, tensor in state.items()},
            folder / f"{name}.safetensors",
        )
    train_tokenizer(["a red fox", "a blue bear"], CONFIG.text.vocabulary, CONFIG.text.tokens).save(
        str(folder / "tokenizer.json")
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint's directory; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("export") / "checkpoint"
    write_checkpoint(folder)
    return folder


@pytest.fixture
def own_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    return shutil.copytree(checkpoint, tmp_path / "checkpoint")


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Model:
    """The tiny checkpoint, read."""
    return load_model(checkpoint)


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that the command writes of the tiny checkpoint: once for all processes of a run."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    out = root / "exported" / "bundle"
    out.parent.mkdir(exist_ok=True)
    arguments = ["--name", "tiny", "--decode-overlap", "1", "--steps", "7", "--guidance", "1.5", "--sampler", "ddim"]
    arguments += ["--depth", "2", "--with-checkpoint"]
    with (root / "exported.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():  # it comes there whole
            assert main([str(checkpoint), str(out), *arguments]) == 0
    return out


def edit_config(folder: Path, table: str, **changes: object) -> None:
    """Change keys of a checkpoint's config.json."""
    path = folder / "config.json"
    tables = json.loads(path.read_text())
    tables[table].update(changes)
    path.write_text(json.dumps(tables))
