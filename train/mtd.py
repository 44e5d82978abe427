"""Training of MTD on segments of long videos at the stride of a random depth (paper section 3.2, 3.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nuwaxl.errors import InputError
from nuwaxl.train import checkpoint
from nuwaxl.train.config import ModelConfig, from_table, require, require_positive
from nuwaxl.train.data.episodes import EpisodeFolder, TrainingSegment
from nuwaxl.train.data.latents import LatentCache
from nuwaxl.train.diffusion import ForwardProcess
from nuwaxl.train.distributed import Processes, Share
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.networks.text import CLIPText
from nuwaxl.train.networks.tklvae import TKLVAE
from nuwaxl.train.progress import note
from nuwaxl.train.recompute import recompute_layers
from nuwaxl.train.resume import captions_fingerprint, check_unchanged, files_fingerprint, fingerprint
from nuwaxl.train.run import RunConfig
from nuwaxl.train.task import Game, Objective
from nuwaxl.train.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer


@dataclass(frozen=True)
class MTDTraining:
    """[training]: `tklvae` the T-KLVAE weights, `depth` the m of the tree, `depth_probabilities` of its levels.

    `prompt_dropout` of the segments see the empty prompt, for guidance. `init` names a model directory to start from:
    its MTD and text weights, its tokenizer, and its config.json for every key that the configuration leaves out.
    `episodes` > 0 uses the first so many videos only. `timestep_power` k draws t / T as u^(1/k) with u uniform in
    [0, 1): 1 is eq. 5's uniform t, more favours noisy steps, at which it is decided where things are and how they move.
    `trainable` "temporal" leaves the layers of the text-to-image U-Net as they are: temporal convolutions, temporal
    attentions and condition injection learn. `train_text` false leaves the text encoder as it is.
    """

    tklvae: str
    depth: int = 3
    depth_probabilities: tuple[float, ...] = ()
    prompt_dropout: float = 0.1
    latents: str = "out/latents"
    init: str = ""
    episodes: int = 0
    timestep_power: float = 1.0
    trainable: Literal["all", "temporal"] = "all"
    train_text: bool = True

    def __post_init__(self) -> None:
        require_positive(self, "training", "depth")
        require(self.episodes >= 0, "[training] episodes", "0 (all) or more", self.episodes)
        require(0 <= self.prompt_dropout <= 1, "[training] prompt_dropout", "from 0 to 1", self.prompt_dropout)
        require(self.timestep_power > 0, "[training] timestep_power", "above 0", self.timestep_power)
        levels = self.depth_probabilities
        require(
            not levels or (len(levels) == self.depth and min(levels) >= 0 and abs(sum(levels) - 1) < 1e-6),
            "[training] depth_probabilities",
            f"{self.depth} numbers (depth) that sum to 1",
            levels,
        )
        if not self.init and (self.trainable == "temporal" or not self.train_text):
            raise InputError(
                expected="an init, whose layers may stay as they are",
                found=f'none, with [training] trainable = "{self.trainable}", train_text = {self.train_text}',
                fix="name a model directory by init (nuwaxl-train init makes one), or train all",
            )


class MTDTask:
    """MTD and the text encoder learn together from the diffusion objective; T-KLVAE is fixed."""

    game: Game | None = None

    def __init__(self, tables: Mapping[str, Any], run: RunConfig, show_progress: bool) -> None:
        networks = {name: table for name, table in tables.items() if name not in ("run", "training")}
        self.training = from_table(MTDTraining, tables.get("training", {}), "[training]")
        init = Path(self.training.init)
        base = ModelConfig.load(init / "config.json") if self.training.init else ModelConfig()
        depth = {"depth": self.training.depth}  # as rendered, unless [sampler] says another
        networks["sampler"] = {**depth, **networks.get("sampler", {})}
        self.config = base.replaced(networks, "the configuration")
        if run.compile and run.gradient_checkpointing:
            raise InputError(
                expected="[run] compile or gradient_checkpointing", found="both", fix="set one of them to false"
            )
        self.run, processes = run, Processes.join(run)
        self.device = processes.device
        mtd, text, vae = self.config.mtd, self.config.text, self.config.tklvae
        for name, of_mtd, other in (
            ("text.tokens and mtd.prompt_tokens", mtd.prompt_tokens, text.tokens),
            ("text.dim and mtd.prompt_dim", mtd.prompt_dim, text.dim),
            ("tklvae.latent_channels and mtd.latent_channels", mtd.latent_channels, vae.latent_channels),
        ):
            if of_mtd != other:
                raise InputError(expected=f"{name} to be equal", found=f"{other} and {of_mtd}", fix="change one")
        if mtd.length < 3 and self.training.depth > 1:
            raise InputError(
                expected="mtd.length to be 3 or more: a local diffusion is given both ends, and draws what is between",
                found=f"{mtd.length}, with [training] depth = {self.training.depth}",
                fix="raise mtd.length",
            )

        show_progress = show_progress and processes.leads
        self.folder = EpisodeFolder(run.data, self.training.episodes, show_progress)
        self._check_size()
        # Before hours of encoding, not at the first step that draws the level.
        self.folder.check_lengths(mtd.length, self.training.depth, self.training.depth_probabilities or None)
        # The text encoder's embeddings belong to the ids it was trained with: here before, or in `init`.
        own = Path(run.out) / "model" / "tokenizer.json"
        if own.exists() or self.training.init:
            self.tokenizer = load_tokenizer(own if own.exists() else init / "tokenizer.json")
        else:
            captions = {text for episode in self.folder.episodes for text in episode.captions.texts}
            self.tokenizer = train_tokenizer(captions, text.vocabulary, text.tokens)

        self.vae = TKLVAE(vae)
        checkpoint.load_into(self.vae, Path(self.training.tklvae))
        self.vae.to(self.device, memory_format=torch.channels_last).eval()
        self.latents = LatentCache(Path(self.training.latents), self.vae, self.folder, mtd.length)
        began_from = ("mtd.safetensors", "text.safetensors", "tokenizer.json") if self.training.init else ()
        self._init = files_fingerprint(init / name for name in began_from)
        previous = checkpoint.latest(Path(run.out))
        if previous is not None:  # before hours of encoding videos that it was not trained on
            check_unchanged(previous, {"data": self._data()})
        self.latents.fill(processes.share.of(range(len(self.folder))), show_progress)
        processes.wait()

        if show_progress:
            note(f"making MTD and its text encoder{f' of {init}' if self.training.init else ''}")
        torch.manual_seed(run.seed)
        self.mtd, self.text = MTD(mtd), CLIPText(text)
        if self.training.init:
            checkpoint.load_into(self.mtd, init / "mtd.safetensors")
            checkpoint.load_into(self.text, init / "text.safetensors")
        self.mtd.to(self.device, memory_format=torch.channels_last)
        self.text.to(self.device)
        if run.gradient_checkpointing:
            recompute_layers(self.mtd)
            recompute_layers(self.text)
        self.network = torch.compile(self.mtd, fullgraph=True, dynamic=False) if run.compile else self.mtd
        self.forward_process = ForwardProcess(self.config.diffusion, self.device)
        self.modules: dict[str, nn.Module] = {"mtd": self.mtd, "text": self.text}

    def _check_size(self) -> None:
        height, width = self.folder.size()
        mtd, f = self.config.mtd, self.config.tklvae.downsampling
        if (height, width) != (mtd.latent_height * f, mtd.latent_width * f):
            raise InputError(
                expected=f"videos of {mtd.latent_width * f} x {mtd.latent_height * f} pixels "
                f"(latents of {mtd.latent_width} x {mtd.latent_height}, f = {f}) in {self.run.data}",
                found=f"{width} x {height}",
                fix="scale the videos, or change mtd.latent_height and mtd.latent_width",
            )

    def configuration(self) -> dict[str, dict[str, Any]]:
        return {
            "training": dataclasses.asdict(self.training),
            **dataclasses.asdict(self.config),
            "data": self._data(),
        }

    def _data(self) -> dict[str, str]:
        return {
            "videos": fingerprint(self.folder),
            "captions": captions_fingerprint(self.folder),
            "latents": self.latents.folder.name,  # whose T-KLVAE's they are
            "init": self._init,
        }

    def parameters(self) -> list[nn.Parameter]:
        chosen = list(self.mtd.parameters()) if self.training.trainable == "all" else self.mtd.temporal_parameters()
        if self.training.train_text:
            chosen += self.text.parameters()
        for network in (self.mtd, self.text):
            network.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        return chosen

    def _embed(self, prompts: list[list[str]]) -> Tensor:
        """Per-frame prompts of b segments -> (b, L, l_p, d_p); each different text is encoded once."""
        unique = sorted({text for frames in prompts for text in frames})
        ids = torch.tensor([encoding.ids for encoding in self.tokenizer.encode_batch(unique)], device=self.device)
        index = {text: number for number, text in enumerate(unique)}
        rows = torch.tensor([[index[text] for text in frames] for frames in prompts], device=self.device)
        return self.text(ids)[rows]

    def _segments(self, rng: np.random.Generator) -> list[TrainingSegment]:
        """The whole batch."""
        probabilities = self.training.depth_probabilities or None
        length, depth = self.config.mtd.length, self.training.depth
        return [self.folder.sample_segment(rng, length, depth, probabilities) for _ in range(self.run.batch_size)]

    def files(self, rng: np.random.Generator, share: Share) -> list[str]:
        return [
            f"{self.folder.episodes[segment.episode].video} (frames {segment.frames[0]} to {segment.frames[-1]}, "
            f"stride {segment.stride})"
            for segment in share.of(self._segments(rng))
        ]

    def prompts(self, rng: np.random.Generator, share: Share, segments: list[TrainingSegment]) -> list[list[str]]:
        """The captions of a share's `segments` by frame, all empty for the part that goes without (for guidance)."""
        dropped = share.of(rng.random(self.run.batch_size) < self.training.prompt_dropout)
        return [
            [""] * len(segment.frames) if drop else self.folder.texts(segment)
            for segment, drop in zip(segments, dropped, strict=True)
        ]

    def loss(self, rng: np.random.Generator, generator: torch.Generator, share: Share, step: int) -> Objective:
        count = self.run.batch_size
        segments = share.of(self._segments(rng))
        prompts = self.prompts(rng, share, segments)
        latents = np.stack([self.latents.read(segment.episode, segment.frames) for segment in segments])
        x_0 = torch.from_numpy(latents).to(self.device)
        mask = torch.from_numpy(np.stack([segment.mask for segment in segments])).to(self.device)
        mask = mask[:, :, None, None, None].expand(-1, -1, 1, *x_0.shape[3:])
        train_steps = self.config.diffusion.train_steps
        uniform = torch.rand(count, generator=generator, device=self.device)
        drawn = (train_steps * uniform ** (1.0 / self.training.timestep_power)).long()
        timestep = share.of(drawn.clamp(max=train_steps - 1))
        noise = share.of(torch.randn((count, *x_0.shape[1:]), generator=generator, device=self.device))
        x_t, target = self.forward_process(x_0, noise, timestep)
        prediction = self.network(x_t, timestep, self._embed(prompts), x_0 * mask, mask)
        errors = (prediction.float() - target).square().mean(dim=(1, 2, 3, 4))
        figures: dict[str, float | list[float]] = {"loss": errors.mean().item()}
        for depth in sorted({segment.depth for segment in segments}):
            figures[f"loss_depth_{depth}"] = [
                error for segment, error in zip(segments, errors.tolist(), strict=True) if segment.depth == depth
            ]
        return Objective(errors.mean(), figures)

    def publish(self, weights: dict[str, dict[str, Tensor]], folder: Path) -> None:
        for name, state in weights.items():
            checkpoint.save_weights(state, folder / f"{name}.safetensors")
        checkpoint.save_weights(self.vae.state_dict(), folder / "tklvae.safetensors")
        save_tokenizer(self.tokenizer, folder / "tokenizer.json")
        self.config.save(folder / "config.json")
