"""At initialisation MTD is diffusers' UNet2DConditionModel applied to every frame on its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from nuwaxl.train.config import MTDConfig
from nuwaxl.train.diffusers_folder import mtd_config
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.networks.pretrained import load_published
from nuwaxl.train.presets import SD15
from tests.train.oracle import relative_error, save_unet
from tests.train.tiny import mtd_inputs

CONFIGURATIONS: dict[str, tuple[tuple[bool, ...], dict[str, Any]]] = {
    "two levels": ((True, True), {"block_out_channels": (16, 32), "layers_per_block": 1, "attention_head_dim": 4}),
    "four levels, the last without attention": (
        (True, True, True, False),
        {"block_out_channels": (8, 16, 24, 24), "layers_per_block": 2, "attention_head_dim": 8},
    ),
    "attention in the middle only": (
        (False, False, False),
        {"block_out_channels": (8, 8, 16), "layers_per_block": 3, "attention_head_dim": 2},
    ),
    "linear projections": (
        (False, True),
        {"block_out_channels": (8, 16), "layers_per_block": 1, "use_linear_projection": True, "attention_head_dim": 4},
    ),
}


def frame_by_frame(unet: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    frames = [
        unet(inputs["x"][:, i], inputs["timestep"], inputs["prompt"][:, i]).sample for i in range(inputs["x"].shape[1])
    ]
    return torch.stack(frames, dim=1)


def loaded(folder: Path, length: int, prompt_tokens: int, latent: int) -> MTD:
    network = MTD(mtd_config(folder, length, prompt_tokens, latent, latent))
    load_published(network, folder / "unet")
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_mtd_at_initialisation_is_the_unet_on_every_frame(name: str, tmp_path: Path) -> None:
    attention, sizes = CONFIGURATIONS[name]
    unet = save_unet(tmp_path, attention, cross_attention_dim=12, norm_num_groups=4, **sizes)
    network = loaded(tmp_path, length=3, prompt_tokens=5, latent=8)
    inputs = mtd_inputs(2, network.config)
    inputs["timestep"] = torch.tensor([3, 981])
    expected = frame_by_frame(unet, inputs)
    found = network(**inputs)
    assert relative_error(found, expected) < 1e-5
    # The condition of these inputs is given; the zero-initialised injection must leave no trace of it.
    blank = {**inputs, "condition": torch.zeros_like(inputs["x"]), "mask": torch.zeros_like(inputs["mask"])}
    assert torch.equal(network(**blank), found)


def test_the_comparison_sees_a_single_changed_weight(tmp_path: Path) -> None:
    attention, sizes = CONFIGURATIONS["two levels"]
    unet = save_unet(tmp_path, attention, cross_attention_dim=12, norm_num_groups=4, **sizes)
    network = loaded(tmp_path, length=2, prompt_tokens=5, latent=8)
    inputs = mtd_inputs(1, network.config)
    inputs["timestep"] = torch.tensor([500])
    with torch.no_grad():
        network.mid_layer.attention.transformer_blocks[0].attn2.to_q.weight[0, 0] += 1.0
    assert relative_error(network(**inputs), frame_by_frame(unet, inputs)) > 1e-5


@pytest.mark.slow
def test_the_real_size_is_the_unet_on_every_frame(tmp_path: Path) -> None:
    """One network at a time in memory, two frames of 128 x 128 pixels: about 6 GiB."""
    unet = save_unet(tmp_path)
    config = mtd_config(tmp_path, 16, 77, 32, 32)
    assert config == SD15.mtd
    inputs = mtd_inputs(1, MTDConfig(length=2, latent_height=16, latent_width=16))
    inputs["timestep"] = torch.tensor([500])
    expected = frame_by_frame(unet, inputs)
    del unet
    assert relative_error(loaded(tmp_path, length=2, prompt_tokens=77, latent=16)(**inputs), expected) < 1e-5
