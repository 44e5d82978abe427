"""Small trainings of both networks, on the generated cartoons."""

from pathlib import Path
from typing import Any

import torch

from nuwaxl.train import checkpoint
from nuwaxl.train.config import TKLVAEConfig, from_table
from nuwaxl.train.mtd import MTDTask
from nuwaxl.train.networks.tklvae import TKLVAE
from nuwaxl.train.run import RunConfig
from nuwaxl.train.tklvae import TKLVAETask

TKLVAE_TABLE: dict[str, Any] = {
    "latent_channels": 2,
    "block_channels": [8, 8, 8, 8],
    "layers_per_block": 1,
    "norm_groups": 4,
    "temporal_heads": 2,
}
# Softmax does not see what is added to all keys: these biases' gradients are rounding alone, which AdamW's division by
# its own size turns into steps.
WITHOUT_GRADIENT = ("to_k.bias", "k_proj.bias")
NETWORKS: dict[str, dict[str, Any]] = {
    "tklvae": TKLVAE_TABLE,
    "mtd": {
        "length": 3,
        "latent_channels": 2,
        "latent_height": 8,
        "latent_width": 8,
        "block_channels": [8, 8],
        "attention": [True, True],
        "layers_per_block": 1,
        "heads": 2,
        "feed_forward": 2,
        "norm_groups": 4,
        "prompt_tokens": 12,
        "prompt_dim": 8,
        "condition_channels": 4,
    },
    "text": {"vocabulary": 300, "tokens": 12, "dim": 8, "layers": 1, "heads": 2},
}


def run_config(data: Path, out: Path, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "data": str(data), "out": str(out), "steps": 2, "batch_size": 4, "learning_rate": 1e-3, "warmup": 1,
        "log_every": 1, "checkpoint_every": 1, "keep_checkpoints": 9, "tensorboard": False, "device": "cpu",
    }  # fmt: skip
    return RunConfig(**{**settings, **changes})


def tklvae_task(run: RunConfig, **training: Any) -> TKLVAETask:
    training = {"frames": 3, "calibration_batches": 1, **training}
    return TKLVAETask({"tklvae": TKLVAE_TABLE, "training": training}, run, show_progress=False)


def write_tklvae(path: Path) -> Path:
    torch.manual_seed(7)
    network = TKLVAE(from_table(TKLVAEConfig, TKLVAE_TABLE, "[tklvae]"))
    checkpoint.save_weights(network.state_dict(), path)
    return path


def mtd_task(run: RunConfig, folder: Path, **training: Any) -> MTDTask:
    """`folder` holds tklvae.safetensors and, from the first task on, the latents."""
    weights = str(folder / "tklvae.safetensors")
    training = {"tklvae": weights, "latents": str(folder / "latents"), "depth": 2, **training}
    return MTDTask({**NETWORKS, "training": training}, run, show_progress=False)
