"""The preset sd15 is what Stable Diffusion 1.5's published config.json files say, and its size is the published one."""

import json
from pathlib import Path

import pytest

from nuwaxl.train.cli import main
from nuwaxl.train.describe import count
from nuwaxl.train.diffusers_folder import latent_statistics, read_config
from nuwaxl.train.presets import SD15
from tests.train.sd_folder import SCHEDULER

# The files as they were published.
PUBLISHED = {
    "unet/config.json": {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    },
    "vae/config.json": {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 512,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder/config.json": {
        "_name_or_path": "openai/clip-vit-large-patch14",
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77,
        "model_type": "clip_text_model",
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "pad_token_id": 1,
        "projection_dim": 768,
        "torch_dtype": "float32",
        "transformers_version": "4.22.0.dev0",
        "vocab_size": 49408,
    },
    "scheduler/scheduler_config.json": SCHEDULER,
}


def test_the_preset_is_the_published_configuration(tmp_path: Path) -> None:
    for name, table in PUBLISHED.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(json.dumps(table))
    assert read_config(tmp_path) == SD15
    assert latent_statistics(tmp_path) == (0.0, 0.18215)


def test_the_pretrained_parts_have_the_published_number_of_parameters() -> None:
    counts = count(SD15)
    assert counts["mtd"]["spatial layers (U-Net)"] == 859_520_964
    assert counts["tklvae"]["encoder, spatial"] + counts["tklvae"]["decoder, spatial"] == 83_653_863
    assert sum(counts["text"].values()) == 123_060_480


def test_describe_prints_the_table_of_the_documentation(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["describe", "sd15"]) == 0
    preset = capsys.readouterr().out
    assert preset.strip() in (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    SD15.save(tmp_path / "config.json")
    assert main(["describe", str(tmp_path)]) == 0
    assert capsys.readouterr().out == preset
    assert main(["describe", "sd99"]) == 2
    assert "sd15" in capsys.readouterr().err
