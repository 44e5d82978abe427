"""Reading of a Stable Diffusion 1.x folder in the diffusers format: what its config.json files say of the networks.

MTD, T-KLVAE and the text encoder have Stable Diffusion 1.x's structure at any size. What a configuration can say
beyond that is refused by name, so that no network loads that would then compute something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nuwaxl.errors import InputError, reason
from nuwaxl.formats import parse_json
from nuwaxl.train.config import DiffusionConfig, ModelConfig, MTDConfig, TextConfig, TKLVAEConfig, require_frame_size

_ATTENTION, _PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")

# Keys with the one value the networks here are built for, which is also the meaning of a key that is left out.
_UNET_FIXED: Mapping[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": None,
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
}
_VAE_FIXED: Mapping[str, Any] = {
    "act_fn": "silu",
    "in_channels": 3,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "out_channels": 3,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
_TEXT_FIXED: Mapping[str, Any] = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
# Which sampler the folder names, and with what options, is no matter: the noise schedule is.
_SCHEDULER_FIXED: Mapping[str, Any] = {"trained_betas": None}


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            expected=f"a JSON file at {path}",
            found=reason(error),
            fix="name a Stable Diffusion 1.x folder in the diffusers format",
        ) from error
    if not isinstance(found, dict):
        raise InputError(expected=f"a JSON object in {path}", found=type(found).__name__, fix="download it again")
    return found


def _refuse(path: Path, key: str, expected: object, found: object) -> InputError:
    return InputError(
        expected=f"{key} to be {expected} in {path}",
        found=repr(found),
        fix="name a folder with Stable Diffusion 1.x's structure",
    )


def _check(table: Mapping[str, Any], fixed: Mapping[str, Any], path: Path) -> None:
    for key, value in fixed.items():
        if table.get(key, value) != value:
            raise _refuse(path, key, repr(value), table[key])


def _whole(table: Mapping[str, Any], key: str, path: Path, default: int | None = None) -> int:
    value = table.get(key, default)
    if type(value) is not int or value < 1:
        raise _refuse(path, key, "a whole number of at least 1", value)
    return value


def _widths(table: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    value = table.get("block_out_channels")
    if not isinstance(value, list) or not value or not all(type(width) is int for width in value):
        raise _refuse(path, "block_out_channels", "a list of whole numbers", value)
    return tuple(value)


def _attention(table: Mapping[str, Any], levels: int, path: Path) -> tuple[bool, ...]:
    """Which levels have attention; up blocks must mirror the down blocks."""
    down, up = table.get("down_block_types"), table.get("up_block_types")
    if not isinstance(down, list) or len(down) != levels or not set(down) <= {_ATTENTION[0], _PLAIN[0]}:
        raise _refuse(path, "down_block_types", f"{levels} of {_ATTENTION[0]} or {_PLAIN[0]}", down)
    attention = tuple(name == _ATTENTION[0] for name in down)
    mirrored = [(_ATTENTION if has else _PLAIN)[1] for has in reversed(attention)]
    if up != mirrored:
        raise _refuse(path, "up_block_types", mirrored, up)
    return attention


def mtd_config(folder: Path, length: int, prompt_tokens: int, latent_height: int, latent_width: int) -> MTDConfig:
    path = folder / "unet" / "config.json"
    table = read_json(path)
    _check(table, _UNET_FIXED, path)
    widths, channels = _widths(table, path), _whole(table, "in_channels", path)
    if table.get("out_channels") != channels:
        raise _refuse(path, "out_channels", channels, table.get("out_channels"))
    # Stable Diffusion 1.x's `attention_head_dim` counts heads; `num_attention_heads` is its later, truer name.
    heads = table.get("num_attention_heads") or table.get("attention_head_dim", 8)
    if isinstance(heads, list) and len(set(heads)) == 1:
        heads = heads[0]
    return MTDConfig(
        length=length,
        latent_channels=channels,
        latent_height=latent_height,
        latent_width=latent_width,
        block_channels=widths,
        attention=_attention(table, len(widths), path),
        layers_per_block=_whole(table, "layers_per_block", path, 2),
        heads=_whole({"attention_head_dim": heads}, "attention_head_dim", path),
        norm_groups=_whole(table, "norm_num_groups", path, 32),
        prompt_tokens=prompt_tokens,
        prompt_dim=_whole(table, "cross_attention_dim", path),
    )


def tklvae_config(folder: Path) -> TKLVAEConfig:
    path = folder / "vae" / "config.json"
    table = read_json(path)
    widths = _widths(table, path)
    down, up = ["DownEncoderBlock2D"] * len(widths), ["UpDecoderBlock2D"] * len(widths)
    _check(table, {**_VAE_FIXED, "down_block_types": down, "up_block_types": up}, path)
    return TKLVAEConfig(
        channels=3,
        latent_channels=_whole(table, "latent_channels", path, 4),
        block_channels=widths,
        layers_per_block=_whole(table, "layers_per_block", path, 1),
        norm_groups=_whole(table, "norm_num_groups", path, 32),
    )


def _number(table: Mapping[str, Any], key: str, path: Path, default: float) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refuse(path, key, "a number", value)
    return float(value)


def latent_statistics(folder: Path) -> tuple[float, float]:
    """The shift and scale of the latents that the U-Net was trained on: x_0 = (mean - shift) * scale."""
    path = folder / "vae" / "config.json"
    table = read_json(path)
    shift = 0.0 if table.get("shift_factor") is None else _number(table, "shift_factor", path, 0.0)
    return shift, _number(table, "scaling_factor", path, 0.18215)


def text_config(folder: Path) -> TextConfig:
    path = folder / "text_encoder" / "config.json"
    table = read_json(path)
    dim = _whole(table, "hidden_size", path)
    _check(table, {**_TEXT_FIXED, "intermediate_size": 4 * dim}, path)
    return TextConfig(
        vocabulary=_whole(table, "vocab_size", path),
        tokens=_whole(table, "max_position_embeddings", path),
        dim=dim,
        layers=_whole(table, "num_hidden_layers", path),
        heads=_whole(table, "num_attention_heads", path),
    )


def diffusion_config(folder: Path) -> DiffusionConfig:
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return DiffusionConfig()
    table = read_json(path)
    _check(table, _SCHEDULER_FIXED, path)
    schedules = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}
    predictions = {"epsilon": "eps", "v_prediction": "v"}
    schedule, prediction = table.get("beta_schedule", "linear"), table.get("prediction_type", "epsilon")
    for key, value, known in (("beta_schedule", schedule, schedules), ("prediction_type", prediction, predictions)):
        if value not in known:
            raise _refuse(path, key, f"one of {sorted(known)}", value)
    schedule = schedules[schedule]
    if table.get("rescale_betas_zero_snr"):
        if (schedule, prediction) != ("scaled_linear", "v_prediction"):
            expected = 'false, or beta_schedule "scaled_linear" and prediction_type "v_prediction"'
            raise _refuse(path, "rescale_betas_zero_snr", expected, True)
        schedule = "zero_terminal_snr"
    return DiffusionConfig(
        train_steps=_whole(table, "num_train_timesteps", path, 1000),
        schedule=schedule,
        beta_start=_number(table, "beta_start", path, 0.0001),
        beta_end=_number(table, "beta_end", path, 0.02),
        prediction=predictions[prediction],  # type: ignore[arg-type]
    )


def read_config(folder: Path, length: int = 16, height: int = 256, width: int = 256) -> ModelConfig:
    """The configuration of `folder`'s networks for segments of `length` frames of height x width pixels.

    Raises:
        InputError: a config.json is missing, or says what Stable Diffusion 1.x's structure has no place for; or
            the frame size cannot be halved as often as the networks do.
    """
    text, tklvae = text_config(folder), tklvae_config(folder)
    f = tklvae.downsampling
    unet = folder / "unet" / "config.json"
    require_frame_size(height, width, f * 2 ** (len(_widths(read_json(unet), unet)) - 1))
    mtd = mtd_config(folder, length, text.tokens, height // f, width // f)
    for name, one, other in (
        ("cross_attention_dim (unet) and hidden_size (text_encoder)", mtd.prompt_dim, text.dim),
        ("in_channels (unet) and latent_channels (vae)", mtd.latent_channels, tklvae.latent_channels),
    ):
        if one != other:
            raise InputError(
                expected=f"{name} to be equal in {folder}", found=f"{one} and {other}", fix="name another folder"
            )
    return ModelConfig(tklvae=tklvae, mtd=mtd, text=text, diffusion=diffusion_config(folder))
