"""Configuration of the networks and of the diffusion process: frozen, validated at construction, plain JSON on disk."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from nuwaxl.errors import InputError, reason
from nuwaxl.formats import parse_json

T = TypeVar("T")


def from_table(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `cls` from a TOML or JSON table; lists become tuples, an unknown key is an InputError."""
    require_table(table, where)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    known = {f.name for f in fields}
    unknown = sorted(set(table) - known)
    if unknown:
        raise InputError(
            expected=f"keys of {where} among {sorted(known)}", found=f"{unknown}", fix="correct or remove them"
        )
    needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    missing = [name for name in needed if name not in table]
    if missing:
        raise InputError(
            expected=f"the keys of {where} that have no default", found=f"none of {missing}", fix="add them"
        )
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    hints = get_type_hints(cls)
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise InputError(
                expected=f"{key} of {where} to be {_describe(hints[key])}", found=repr(value), fix="correct it"
            )
    return cls(**values)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value is of the type a configuration field is declared with."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        try:
            float(value)
        except OverflowError:
            return False
        return True
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(hint))
    return f"a list of {get_args(hint)[0].__name__}" if get_origin(hint) is tuple else f"of type {hint.__name__}"


def require(holds: bool, key: str, expected: str, found: object) -> None:
    """Raise InputError unless `holds`: `key`, with its table, was to be `expected`."""
    if not holds:
        raise InputError(expected=f"{key} to be {expected}", found=repr(found), fix=f"change {key}")


def require_table(found: object, where: str) -> None:
    """Raise InputError unless this is a table: a value or a list of tables can stand in its place in a file."""
    if not isinstance(found, Mapping):
        raise InputError(expected=f"a table {where}", found=repr(found), fix="give its keys below its name in brackets")


def require_positive(config: object, table: str, *keys: str) -> None:
    """Raise InputError unless these fields of a configuration, and all entries of those that are lists, are >= 1."""
    for key in keys:
        value = getattr(config, key)
        entries = value if isinstance(value, tuple) else (value,)
        require(bool(entries) and min(entries) >= 1, f"[{table}] {key}", "1 or more", value)


def require_divisor(table: str, key: str, divisor: int, of: str, widths: Iterable[int]) -> None:
    """Raise InputError unless `divisor`, the value of `key`, divides every one of the channel counts `widths`."""
    uneven = [width for width in widths if width % divisor]
    require(not uneven, f"[{table}] {key}", f"a divisor of {of}", f"{divisor} for {uneven}")


def require_frame_size(height: int, width: int, multiple: int) -> None:
    """Raise InputError unless frames of these pixels can be halved as often as the networks do."""
    for name, pixels in (("height", height), ("width", width)):
        if pixels < multiple or pixels % multiple:
            raise InputError(expected=f"a {name} that is a multiple of {multiple}", found=str(pixels), fix="change it")


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
        sizes = ("channels", "latent_channels", "block_channels", "layers_per_block", "norm_groups", "temporal_heads")
        require_positive(self, "tklvae", *sizes, "temporal_kernel")
        require(self.temporal_kernel % 2 == 1, "[tklvae] temporal_kernel", "odd (eq. 1)", self.temporal_kernel)
        require_divisor("tklvae", "norm_groups", self.norm_groups, "every entry of block_channels", self.block_channels)
        if self.temporal != "none":
            last = self.block_channels[-1:]
            require_divisor("tklvae", "temporal_heads", self.temporal_heads, "the last of block_channels", last)

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.block_channels) - 1)


@dataclass(frozen=True)
class MTDConfig:
    """Mask Temporal Diffusion (paper section 3.2): the U-Net of latent diffusion with temporal layers and injection.

    `multi_scale` (MI) and `symmetric` (SI) are the ablations of Table 2b: inject at every scale or at the highest
    only, into down and up blocks or into up blocks only. `frame_positions` tells temporal attention which frame of
    the segment is which.
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
    frame_positions: bool = True

    def __post_init__(self) -> None:
        require_positive(
            self, "mtd", *(f.name for f in dataclasses.fields(self) if f.type in ("int", "tuple[int, ...]"))
        )
        widths = self.block_channels
        if len(self.attention) != len(widths):
            raise InputError(
                expected="one entry of [mtd] attention for each entry of block_channels",
                found=f"{len(self.attention)} and {len(widths)}",
                fix="give both the same length",
            )
        require(self.temporal_kernel % 2 == 1, "[mtd] temporal_kernel", "odd (eq. 9)", self.temporal_kernel)
        odd = [width for width in widths if width % 2]
        require(not odd, "[mtd] block_channels", "even (timestep embedding, frame positions)", widths)
        require_divisor("mtd", "norm_groups", self.norm_groups, "every entry of block_channels", widths)
        # The middle block has attention whatever `attention` says of its level.
        attending = [width for width, has in zip(widths, self.attention, strict=True) if has] + [widths[-1]]
        require_divisor("mtd", "heads", self.heads, "the block_channels with attention and the last", attending)
        halvings = 2 ** (len(widths) - 1)
        for key in ("latent_height", "latent_width"):
            size = getattr(self, key)
            require(size % halvings == 0, f"[mtd] {key}", f"a multiple of {halvings}, for {len(widths)} levels", size)


@dataclass(frozen=True)
class TextConfig:
    """CLIP text transformer (causal, pre-norm, quick GELU), as Stable Diffusion 1.x uses it for its prompts."""

    vocabulary: int = 49408
    tokens: int = 77
    dim: int = 768
    layers: int = 12
    heads: int = 12

    def __post_init__(self) -> None:
        require_positive(self, "text", "vocabulary", "tokens", "dim", "layers", "heads")
        require(self.tokens >= 3, "[text] tokens", "3 or more (start, a word, end)", self.tokens)
        require_divisor("text", "heads", self.heads, "dim", [self.dim])


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process of eq. 3 and the quantity the network predicts."""

    train_steps: int = 1000
    schedule: Literal["scaled_linear", "linear", "cosine", "zero_terminal_snr"] = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: Literal["eps", "v"] = "eps"

    def __post_init__(self) -> None:
        require_positive(self, "diffusion", "train_steps")
        betas = (self.beta_start, self.beta_end)
        require(0 < betas[0] <= betas[1] < 1, "[diffusion] beta_start, beta_end", "0 < start <= end < 1", betas)
        zero_snr_of_eps = self.schedule == "zero_terminal_snr" and self.prediction == "eps"
        require(not zero_snr_of_eps, "[diffusion] prediction", '"v" with schedule "zero_terminal_snr"', self.prediction)
        # Of one step abar_0 is the last abar, too: it cannot stay and become 0.
        enough = self.schedule != "zero_terminal_snr" or self.train_steps > 1
        require(enough, "[diffusion] train_steps", '2 or more with schedule "zero_terminal_snr"', self.train_steps)


@dataclass(frozen=True)
class SamplerConfig:
    """Defaults of a render that a bundle of this model carries. MTD's training sets `depth` to its own, unless it is
    given; at 1 a render takes the smallest depth that spans its frames."""

    name: Literal["dpmpp_2m", "ddim", "ddpm"] = "dpmpp_2m"
    steps: int = 25
    guidance: float = 7.5
    depth: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "sampler", "steps", "depth")
        # What a bundle may carry (engine/bundle_schema.py): not found out after the training.
        require(0 <= self.guidance <= 1000, "[sampler] guidance", "from 0 to 1000", self.guidance)


@dataclass(frozen=True)
class ModelConfig:
    """All a model directory's config.json holds."""

    tklvae: TKLVAEConfig = field(default_factory=TKLVAEConfig)
    mtd: MTDConfig = field(default_factory=MTDConfig)
    text: TextConfig = field(default_factory=TextConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)

    @classmethod
    def from_tables(cls, tables: Mapping[str, Any], where: str) -> Self:
        require_table(tables, where)
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
            tables = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                expected=f"a model configuration at {path}", found=reason(error), fix="name a model directory"
            ) from error
        return cls.from_tables(tables, str(path))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")
