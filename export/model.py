"""Reading of a model directory: the trained networks, and the sizes the bundle's manifest states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.bundle_schema import TOKENIZER_FILE, Network
from nuwaxl.errors import InputError, reason
from nuwaxl.train.checkpoint import load_into
from nuwaxl.train.config import ModelConfig
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.networks.text import CLIPText
from nuwaxl.train.networks.tklvae import TKLVAE

CONFIG_FILE = "config.json"
CHECKPOINT_FILES = (CONFIG_FILE, "mtd.safetensors", "text.safetensors", "tklvae.safetensors")


@dataclass(frozen=True)
class Model:
    """A trained model: its networks in evaluation mode, without gradients, in float32."""

    config: ModelConfig
    text: CLIPText
    mtd: MTD
    tklvae: TKLVAE
    tokenizer: bytes

    def network(self, decode_overlap: int) -> Network:
        """The sizes a bundle's manifest states."""
        mtd, tklvae = self.config.mtd, self.config.tklvae
        return Network(
            length=mtd.length,
            latent_channels=mtd.latent_channels,
            latent_height=mtd.latent_height,
            latent_width=mtd.latent_width,
            channels=tklvae.channels,
            height=mtd.latent_height * tklvae.downsampling,
            width=mtd.latent_width * tklvae.downsampling,
            prompt_tokens=mtd.prompt_tokens,
            prompt_dim=mtd.prompt_dim,
            decode_overlap=decode_overlap,
        )


def load_model(folder: Path) -> Model:
    """Read config.json, the three networks' weights (float16 becomes float32) and tokenizer.json.

    Raises:
        InputError: a file is missing or unreadable, weights of another shape than the configuration's, or
            networks that do not fit each other.
    """
    if not folder.is_dir():
        raise InputError(
            expected=f"a model directory at {folder}",
            found="a file" if folder.exists() else "nothing there",
            fix="name the directory that nuwaxl-train wrote",
        )
    config = ModelConfig.load(folder / CONFIG_FILE)
    _check_fit(config)
    tokenizer = _read_tokenizer(folder / TOKENIZER_FILE, config)
    text = CLIPText(config.text)  # whose causal mask is no weight
    with torch.device("meta"):  # without memory: all of it comes from the files
        networks = {"text": text, "mtd": MTD(config.mtd), "tklvae": TKLVAE(config.tklvae)}
    for name, network in networks.items():
        load_into(network, folder / f"{name}.safetensors", mapped=True)
        network.eval().requires_grad_(False)
    return Model(config=config, tokenizer=tokenizer, **networks)


def load_bundled(bundle: Bundle) -> Model:
    """The model that a bundle was exported of, where it carries it.

    Raises:
        InputError: it does not.
    """
    missing = [name for name in CHECKPOINT_FILES if name not in bundle.manifest.files]
    if missing:
        raise InputError(
            expected=f"{', '.join(CHECKPOINT_FILES)} in the bundle {bundle.path}",
            found=f"no {', '.join(missing)}",
            fix="export it with nuwaxl-export --with-checkpoint",
        )
    return load_model(bundle.path)


def _check_fit(config: ModelConfig) -> None:
    mtd, tklvae, text = config.mtd, config.tklvae, config.text
    for name, of_mtd, other, of_other in (
        ("latent_channels", mtd.latent_channels, "tklvae.latent_channels", tklvae.latent_channels),
        ("prompt_tokens", mtd.prompt_tokens, "text.tokens", text.tokens),
        ("prompt_dim", mtd.prompt_dim, "text.dim", text.dim),
    ):
        if of_mtd != of_other:
            raise InputError(
                expected=f"mtd.{name} and {other} to be equal in {CONFIG_FILE}",
                found=f"{of_mtd} and {of_other}",
                fix="name a checkpoint whose networks were trained together",
            )
    if tklvae.channels != 3:
        raise InputError(
            expected="3 channels (RGB) in tklvae.channels", found=str(tklvae.channels), fix="train on RGB videos"
        )


def _read_tokenizer(path: Path, config: ModelConfig) -> bytes:
    try:
        content = path.read_bytes()
        size = Tokenizer.from_buffer(content).get_vocab_size()
    except Exception as error:  # tokenizers raises plain Exception for a file it cannot read
        raise InputError(
            expected=f"a tokenizer at {path}", found=reason(error), fix="name a complete model directory"
        ) from error
    if size > config.text.vocabulary:
        raise InputError(
            expected=f"a tokenizer of at most {config.text.vocabulary} entries (text.vocabulary) at {path}",
            found=f"{size}",
            fix="use the tokenizer the text encoder was trained with",
        )
    return content
