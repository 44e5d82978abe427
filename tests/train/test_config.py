"""Configurations that no network or process could be made of are refused, with the key and what to do."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nuwaxl.errors import InputError
from nuwaxl.train.config import (
    DiffusionConfig,
    ModelConfig,
    MTDConfig,
    SamplerConfig,
    TextConfig,
    TKLVAEConfig,
    from_table,
)
from nuwaxl.train.mtd import MTDTraining
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.run import RunConfig, read_tables
from nuwaxl.train.tklvae import TKLVAETraining
from nuwaxl.train.tokenizer import train_tokenizer
from tests.train.tiny import MTD_TINY, mtd_inputs

MTD_TRAINING = MTDTraining(tklvae="x")
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (MTDConfig(), {"heads": 7}, "[mtd] heads to be a divisor of"),
    (MTDConfig(), {"norm_groups": 48}, "[mtd] norm_groups to be a divisor of every entry"),
    (MTDConfig(), {"temporal_kernel": 2}, "[mtd] temporal_kernel to be odd"),
    (MTDConfig(), {"temporal_kernel": -1}, "[mtd] temporal_kernel to be 1 or more"),
    (MTDConfig(), {"attention": (True, True)}, "one entry of [mtd] attention for each"),
    (MTDConfig(), {"block_channels": ()}, "[mtd] block_channels to be 1 or more"),
    (MTDConfig(), {"block_channels": (320, 0, 1280, 1280)}, "[mtd] block_channels to be 1 or more"),
    (MTDConfig(), {"layers_per_block": 0}, "[mtd] layers_per_block to be 1 or more"),
    (MTDConfig(), {"length": 0}, "[mtd] length to be 1 or more"),
    (MTDConfig(), {"latent_height": 36}, "[mtd] latent_height to be a multiple of 8"),
    (MTD_TINY, {"block_channels": (9, 18), "norm_groups": 3, "heads": 3}, "[mtd] block_channels to be even"),
    (TKLVAEConfig(), {"norm_groups": 48}, "[tklvae] norm_groups to be a divisor"),
    (TKLVAEConfig(), {"temporal_heads": 7}, "[tklvae] temporal_heads to be a divisor of the last"),
    (TKLVAEConfig(), {"temporal_kernel": 4}, "[tklvae] temporal_kernel to be odd"),
    (TextConfig(), {"heads": 5}, "[text] heads to be a divisor of dim"),
    (TextConfig(), {"tokens": 2}, "[text] tokens to be 3 or more"),
    (DiffusionConfig(), {"beta_start": 0.5}, "0 < start <= end < 1"),
    (DiffusionConfig(), {"train_steps": 0}, "[diffusion] train_steps to be 1 or more"),
    (
        DiffusionConfig(schedule="zero_terminal_snr", prediction="v"),
        {"train_steps": 1},
        '[diffusion] train_steps to be 2 or more with schedule "zero_terminal_snr"',
    ),
    (SamplerConfig(), {"steps": 0}, "[sampler] steps to be 1 or more"),
    (SamplerConfig(), {"guidance": 1e300}, "[sampler] guidance to be from 0 to 1000"),
    (MTD_TRAINING, {"prompt_dropout": 1.5}, "[training] prompt_dropout to be from 0 to 1"),
    (MTD_TRAINING, {"prompt_dropout": -0.1}, "[training] prompt_dropout to be from 0 to 1"),
    (MTD_TRAINING, {"episodes": -1}, "[training] episodes to be 0 (all) or more"),
    (MTD_TRAINING, {"timestep_power": 0.0}, "[training] timestep_power to be above 0"),
    (MTD_TRAINING, {"depth": 0}, "[training] depth to be 1 or more"),
    (MTD_TRAINING, {"depth_probabilities": (0.5, 0.5)}, "3 numbers (depth) that sum to 1"),
    (MTD_TRAINING, {"depth_probabilities": (0.5, 0.5, 0.5)}, "3 numbers (depth) that sum to 1"),
    (TKLVAETraining(), {"frames": 0}, "[training] frames to be 1 or more"),
    (TKLVAETraining(), {"adversarial_weight": -1.0}, "[training] adversarial_weight to be 0 or more"),
]


@pytest.mark.parametrize(("config", "changes", "message"), REFUSED, ids=[case[2] for case in REFUSED])
def test_it_is_refused_by_name(config: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"expected .*{re.escape(message)}.*found .*; (change|give) "):
        replace(config, **changes)


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(InputError, match=r"\[text\] vocabulary to be 258 or more.*found 257"):
        train_tokenizer(["a house"], 257, 12)
    assert train_tokenizer(["a house"], 258, 12).get_vocab_size() == 258


def test_heads_need_not_divide_a_level_without_attention() -> None:
    config = replace(MTD_TINY, block_channels=(8, 12), attention=(False, True), heads=3)
    inputs = mtd_inputs(1, config)
    assert MTD(config)(**inputs).shape == inputs["x"].shape


def test_the_temporal_heads_of_an_image_klvae_do_not_matter() -> None:
    assert TKLVAEConfig(block_channels=(4, 12), norm_groups=4, temporal="none").temporal_heads == 8


DEMO = sorted(
    path for path in (Path(__file__).parents[2] / "train" / "demo").glob("*.toml") if "[run]" in path.read_text()
)


@pytest.mark.parametrize("path", DEMO, ids=[path.stem for path in DEMO])
def test_the_demos_configurations_are_accepted_and_ask_for_nothing_new(path: Path) -> None:
    tables = read_tables(path)
    run = from_table(RunConfig, tables.pop("run"), "[run]")
    assert (run.accumulation, run.precision, run.gradient_checkpointing) == (1, "float32", False)
    training = tables.pop("training")
    if "tklvae" in training:
        task = from_table(MTDTraining, training, "[training]")
        assert (task.trainable, task.train_text) == ("all", True)
    else:
        assert from_table(TKLVAETraining, training, "[training]").adversarial_weight == 0
    ModelConfig.from_tables(tables, path.name)


def test_there_are_demo_configurations() -> None:
    assert len(DEMO) >= 4
