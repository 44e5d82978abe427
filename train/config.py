"""Configuration of the networks and of the diffusion process: frozen, validated at construction, plain JSON on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from nuwaxl.errors import InputError

T = TypeVar("T")


def from_table(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `cls` from a TOML or JSON table; lists become tuples, an unknown key is an InputError."""
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - known)
    if unknown:
        raise InputError(
            expected=f"keys of {where} among {sorted(known)}", found=f"{unknown}", fix="correct or remove them"
        )
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    hints = get_type_hints(cls)
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise InputError(
                expected=f"{key} of {where} to be {_describe(hints[key])}", found=repr(value), fix="correct it"
            )
    try:
        return cls(**values)
    except TypeError as error:
        raise InputError(expected=f"a complete table {where}", found=str(error), fix="add the missing keys") from None


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of the type a configuration field is declared with."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(hint))
    return f"a list of {get_args(hint)[0].__name__}" if get_origin(hint) is tuple else f"of type {hint.__name__}"


@dataclass(frozen=True)
class TKLVAEConfig:
    """T-KLVAE (paper section 3.1): the spatial layers of AutoencoderKL with temporal layers after them.

    `temporal` names Table 2a's rows: "none" (KLVAE), "random" (T-KLVAE-R) or "identity" (T-KLVAE).
    The down-sampling factor f is 2 ** (len(block_channels) - 1).
    """

    channels: int = 3
    latent_channels: int = 4
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_groups: int = 32
    temporal: Literal["identity", "random", "none"] = "identity"
    temporal_kernel: int = 3
    temporal_heads: int = 8

    def __post_init__(self) -> None:
        if self.temporal_kernel % 2 == 0:
            raise InputError(
                expected="an odd temporal_kernel (eq. 1)", found=str(self.temporal_kernel), fix="use 3, 5, ..."
            )

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.block_channels) - 1)


@dataclass(frozen=True)
class MTDConfig:
    """Mask Temporal Diffusion (paper section 3.2): the U-Net of latent diffusion with temporal layers and injection.

    `multi_scale` (MI) and `symmetric` (SI) are the ablations of Table 2b: inject at every scale or at the highest
    only, into down and up blocks or into up blocks only.
    """

    length: int = 16
    latent_channels: int = 4
    latent_height: int = 32
    latent_width: int = 32
    block_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    attention: tuple[bool, ...] = (True, True, True, False)
    layers_per_block: int = 2
    heads: int = 8
    feed_forward: int = 4
    norm_groups: int = 32
    prompt_tokens: int = 77
    prompt_dim: int = 768
    temporal_kernel: int = 3
    condition_channels: int = 128
    multi_scale: bool = True
    symmetric: bool = True

    def __post_init__(self) -> None:
        if len(self.attention) != len(self.block_channels):
            raise InputError(
                expected="one entry of attention for each entry of block_channels",
                found=f"{len(self.attention)} and {len(self.block_channels)}",
                fix="give both the same length",
            )


@dataclass(frozen=True)
class TextConfig:
    """CLIP text transformer (causal, pre-norm, quick GELU), as Stable Diffusion 1.x uses it for its prompts."""

    vocabulary: int = 49408
    tokens: int = 77
    dim: int = 768
    layers: int = 12
    heads: int = 12


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process of eq. 3 and the quantity the network predicts."""

    train_steps: int = 1000
    schedule: Literal["scaled_linear", "linear", "cosine"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: Literal["eps", "v"] = "eps"


@dataclass(frozen=True)
class SamplerConfig:
    """Sampler defaults a bundle of this model carries."""

    name: Literal["dpmpp_2m", "ddim"] = "dpmpp_2m"
    steps: int = 25
    guidance: float = 7.5


@dataclass(frozen=True)
class ModelConfig:
    """All a checkpoint directory's config.json holds."""

    tklvae: TKLVAEConfig = field(default_factory=TKLVAEConfig)
    mtd: MTDConfig = field(default_factory=MTDConfig)
    text: TextConfig = field(default_factory=TextConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any], where: str) -> Self:
        parts = {f.name: f.default_factory for f in dataclasses.fields(cls)}
        unknown = sorted(set(tables) - set(parts))
        if unknown:
            raise InputError(expected=f"tables {sorted(parts)} in {where}", found=f"{unknown}", fix="remove them")
        return cls(
            **{name: from_table(parts[name], table, f"[{name}] of {where}") for name, table in tables.items()}  # type: ignore[arg-type]
        )

    def replaced(self, tables: Mapping[str, Any], where: str) -> Self:
        """This configuration with the keys that `tables` give; all others stay."""
        own = dataclasses.asdict(self)
        given = {name: {**own.get(name, {}), **table} for name, table in tables.items()}
        return self.from_tables({**own, **given}, where)

    @classmethod
    def load(cls, path: Path) -> Self:
        try:
            tables = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                expected=f"a model configuration at {path}", found=str(error), fix="name a checkpoint directory"
            ) from error
        return cls.from_tables(tables, str(path))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")
