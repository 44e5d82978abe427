"""At initialisation T-KLVAE is diffusers' AutoencoderKL, frame by frame."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file

from nuwaxl.train.diffusers_folder import latent_statistics, tklvae_config
from nuwaxl.train.init import load_tklvae
from nuwaxl.train.networks.tklvae import TKLVAE
from nuwaxl.train.presets import SD15
from tests.train.oracle import relative_error, save_vae

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "two levels": {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 3},
    "four levels": {"block_out_channels": (8, 16, 16, 24), "layers_per_block": 2, "norm_num_groups": 8},
    "one level, another scale": {
        "block_out_channels": (8,),
        "layers_per_block": 3,
        "norm_num_groups": 2,
        "scaling_factor": 0.5,
        "shift_factor": 0.25,
    },
}


def video(length: int, size: int) -> Tensor:
    return torch.rand(1, length, 3, size, size, generator=torch.Generator().manual_seed(4)) * 2 - 1


def loaded(folder: Path) -> TKLVAE:
    return load_tklvae(folder, tklvae_config(folder)).eval().requires_grad_(False)


def compare(vae: nn.Module, network: TKLVAE, frames: Tensor, shift: float, scale: float) -> None:
    for i in range(frames.shape[1]):
        posterior = vae.encode(frames[:, i]).latent_dist
        mean, log_variance = network.moments(frames)
        assert relative_error(mean[:, i], posterior.mean) < 1e-5
        assert relative_error(log_variance[:, i], posterior.logvar) < 1e-5
        latents = (posterior.mean - shift) * scale
        assert relative_error(network.encode(frames)[:, i], latents) < 1e-5
        # The same latents for both: the difference of the encoders is not the decoder's.
        encoded = network.encode(frames)
        decoded = vae.decode(encoded[:, i] / scale + shift).sample
        assert relative_error(network.decode(encoded)[:, i], decoded) < 1e-5


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_tklvae_at_initialisation_is_the_autoencoder_on_every_frame(name: str, tmp_path: Path) -> None:
    sizes = CONFIGURATIONS[name]
    vae = save_vae(tmp_path, **sizes)
    network = loaded(tmp_path)
    assert len(network.temporal_parameters()) > 10
    shift, scale = sizes.get("shift_factor", 0.0), sizes.get("scaling_factor", 0.18215)
    assert latent_statistics(tmp_path) == (shift, scale)
    compare(vae, network, video(3, 16), shift, scale)


def test_the_first_releases_attention_names_load_as_well(tmp_path: Path) -> None:
    """Stable Diffusion 1.x's own files call them query, key, value and proj_attn."""
    save_vae(tmp_path, **CONFIGURATIONS["two levels"])
    now = loaded(tmp_path).state_dict()
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = {}
    for name, tensor in load_file(path).items():
        for new, old in older.items():
            name = name.replace(f"mid_block.attentions.0.{new}.", f"mid_block.attentions.0.{old}.")
        weights[name] = tensor
    assert sum("proj_attn" in name for name in weights) == 4
    save_file(weights, path)
    then = loaded(tmp_path).state_dict()
    for name, tensor in now.items():
        if "temporal" not in name:
            assert torch.equal(then[name], tensor), name


@pytest.mark.slow
def test_the_real_size_is_the_autoencoder_on_every_frame(tmp_path: Path) -> None:
    vae = save_vae(tmp_path)
    assert tklvae_config(tmp_path) == SD15.tklvae
    compare(vae, loaded(tmp_path), video(1, 64), 0.0, 0.18215)
