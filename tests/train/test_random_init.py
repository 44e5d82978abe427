"""nuwaxl-train init --random: a whole model directory of any size, in which every layer has an effect."""

from dataclasses import replace
from pathlib import Path

import pytest

from nuwaxl.errors import InputError
from nuwaxl.export.model import load_model
from nuwaxl.train import cli, presets
from nuwaxl.train.config import ModelConfig, TextConfig
from nuwaxl.train.random_init import sized
from tests.train.tiny import MTD_TINY, TKLVAE_TINY

SMALL = ModelConfig(
    tklvae=TKLVAE_TINY,
    mtd=replace(MTD_TINY, prompt_dim=8),
    text=TextConfig(vocabulary=300, tokens=6, dim=8, layers=1, heads=2),
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "small", SMALL)


@pytest.mark.usefixtures("small")
def test_the_exporter_reads_it_and_no_layer_is_zero_or_the_identity(tmp_path: Path) -> None:
    size = ["--length", "3", "--height", "16", "--width", "8"]
    assert cli.main(["init", "--random", "small", str(tmp_path / "model"), *size]) == 0
    model = load_model(tmp_path / "model")
    assert (model.config.mtd.length, model.config.mtd.latent_height, model.config.mtd.latent_width) == (3, 4, 2)
    for network in (model.text, model.mtd, model.tklvae):
        for name, weight in network.named_parameters():
            if weight.dim() > 1:
                assert (weight != 0).all(), name
    assert model.mtd.mid_temporal_conv.weight.std() > 0


@pytest.mark.usefixtures("small")
def test_its_weights_are_a_function_of_the_seed(tmp_path: Path) -> None:
    size = ["--length", "3", "--height", "16", "--width", "8"]
    for name, seed in (("one", "0"), ("same", "0"), ("other", "1")):
        assert cli.main(["init", "--random", "small", str(tmp_path / name), *size, "--seed", seed]) == 0
    for file in ("mtd.safetensors", "tklvae.safetensors", "text.safetensors", "tokenizer.json"):
        one, same, other = ((tmp_path / name / file).read_bytes() for name in ("one", "same", "other"))
        assert one == same
        assert (one == other) == (file == "tokenizer.json")


def test_sizes_the_networks_cannot_have_are_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["init", "--random", "sd15", str(tmp_path / "model"), "--height", "72"]) == 2
    assert "a height that is a multiple of 64; found 72" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="a width that is a multiple of 64"):
        sized(presets.SD15, 16, 256, 0)
    assert sized(presets.SD15, 16, 256, 256) == presets.SD15
