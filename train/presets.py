"""Model configurations by name, for those that do not come from a file."""

from __future__ import annotations

from nuwaxl.train.config import DiffusionConfig, ModelConfig, MTDConfig, SamplerConfig, TextConfig, TKLVAEConfig

SD15 = ModelConfig(
    tklvae=TKLVAEConfig(
        channels=3, latent_channels=4, block_channels=(128, 256, 512, 512), layers_per_block=2, norm_groups=32
    ),
    mtd=MTDConfig(
        length=16,
        latent_channels=4,
        latent_height=32,
        latent_width=32,
        block_channels=(320, 640, 1280, 1280),
        attention=(True, True, True, False),
        layers_per_block=2,
        heads=8,
        feed_forward=4,
        norm_groups=32,
        prompt_tokens=77,
        prompt_dim=768,
    ),
    text=TextConfig(vocabulary=49408, tokens=77, dim=768, layers=12, heads=12),
    diffusion=DiffusionConfig(
        train_steps=1000, schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction="eps"
    ),
    sampler=SamplerConfig(name="dpmpp_2m", steps=25, guidance=7.5),
)
"""The paper's model at its real size: Stable Diffusion 1.x with temporal layers, 16 frames of 256 x 256 pixels.

The latents' scale 0.18215 is no part of it: T-KLVAE keeps it in its weights (`latent_scale`).
"""

PRESETS = {"sd15": SD15}
