"""nuwaxl-train from cartoons to a model directory, through its command line."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from nuwaxl.errors import InputError, NuwaxlError
from nuwaxl.train import checkpoint
from nuwaxl.train.cli import main
from nuwaxl.train.config import ModelConfig
from nuwaxl.train.devices import torch_device
from nuwaxl.train.networks.mtd import MTD

TKLVAE_TABLE = """
[tklvae]
latent_channels = 3
block_channels = [8, 8, 8, 8]
layers_per_block = 1
norm_groups = 4
temporal = "{temporal}"
temporal_heads = 2
"""
MTD_TABLES = """
[mtd]
length = 5
latent_channels = 3
latent_height = 8
latent_width = 8
block_channels = [8, 8]
attention = [true, true]
layers_per_block = 1
heads = 2
feed_forward = 2
norm_groups = 4
prompt_tokens = 20
prompt_dim = 8
condition_channels = 4

[text]
vocabulary = 320
tokens = 20
dim = 8
layers = 1
heads = 2
"""


def run_table(data: Path, out: Path, steps: int) -> str:
    return f"""
[run]
data = "{data}"
out = "{out}"
steps = {steps}
batch_size = 2
learning_rate = 1e-3
warmup = 1
log_every = 1
checkpoint_every = 2
device = "cpu"
"""


RUN = '[run]\ndata = "no/such"\nout = "a/y"\nsteps = 1\nbatch_size = 1\nlearning_rate = {rate}\n'


@pytest.fixture(scope="module")
def trained(cartoons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three stages of the demo, a few steps each."""
    folder = tmp_path_factory.mktemp("trained")
    klvae = run_table(cartoons, folder / "klvae", 2) + "[training]\nframes = 1\ncalibration_batches = 2\n"
    (folder / "klvae.toml").write_text(klvae + TKLVAE_TABLE.format(temporal="none"))
    tklvae = run_table(cartoons, folder / "tklvae", 2)
    tklvae += '[training]\nframes = 5\ncalibration_batches = 2\ntrainable = "temporal"\n'
    tklvae += f'init = "{folder}/klvae/model/tklvae.safetensors"\n'
    (folder / "tklvae.toml").write_text(tklvae + TKLVAE_TABLE.format(temporal="identity"))
    mtd = run_table(cartoons, folder / "mtd", 4)
    mtd += f'[training]\ndepth = 2\ntklvae = "{folder}/tklvae/model/tklvae.safetensors"\nlatents = "{folder}/latents"\n'
    (folder / "mtd.toml").write_text(mtd + TKLVAE_TABLE.format(temporal="identity") + MTD_TABLES)
    for stage in ("klvae", "tklvae"):
        assert main(["tklvae", str(folder / f"{stage}.toml")]) == 0
    assert main(["mtd", str(folder / "mtd.toml")]) == 0
    return folder


def test_the_model_directory_is_complete_and_loads(trained: Path) -> None:
    model = trained / "mtd" / "model"
    assert sorted(p.name for p in model.iterdir()) == [
        "config.json", "mtd.safetensors", "text.safetensors", "tklvae.safetensors", "tokenizer.json",
    ]  # fmt: skip
    config = ModelConfig.load(model / "config.json")
    assert config.mtd.length == 5
    assert config.sampler.depth == 2  # [training] depth: a bundle renders in trees of it
    checkpoint.load_into(MTD(config.mtd), model / "mtd.safetensors")


def test_the_log_has_a_line_a_step_with_the_loss_by_depth(trained: Path) -> None:
    log = [json.loads(line) for line in (trained / "mtd" / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3, 4]
    assert all(entry["loss"] > 0 for entry in log)
    assert any("loss_depth_0" in entry for entry in log)
    assert any("loss_depth_1" in entry for entry in log)


def test_training_temporal_layers_leaves_the_spatial_ones_as_they_were(trained: Path) -> None:
    start = checkpoint.load_weights(trained / "klvae" / "model" / "tklvae.safetensors")
    after = checkpoint.load_weights(trained / "tklvae" / "step_00000002" / "tklvae.safetensors")
    for name, tensor in start.items():
        assert torch.equal(after[name], tensor), name
    convolution = after["encoder.temporal_in.weight"]
    assert not torch.equal(convolution, torch.nn.init.dirac_(torch.empty_like(convolution)))


def test_training_the_decoder_leaves_the_latents_as_they_were(trained: Path, cartoons: Path, tmp_path: Path) -> None:
    before = trained / "tklvae" / "model" / "tklvae.safetensors"
    config = run_table(cartoons, tmp_path / "out", 2)
    config += f'[training]\nframes = 5\ncalibration_batches = 1\ntrainable = "decoder"\ninit = "{before}"\n'
    (tmp_path / "decoder.toml").write_text(config + TKLVAE_TABLE.format(temporal="identity"))
    assert main(["tklvae", str(tmp_path / "decoder.toml")]) == 0
    start = checkpoint.load_weights(before)
    after = checkpoint.load_weights(tmp_path / "out" / "model" / "tklvae.safetensors")
    changed = {name for name, tensor in start.items() if not torch.equal(after[name], tensor)}
    assert changed
    assert all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)


def test_mtd_resumed_from_its_checkpoint_is_bit_equal(trained: Path, tmp_path: Path) -> None:
    config = str(trained / "mtd.toml")
    assert main(["mtd", config, "--out", str(tmp_path), "--steps", "4"]) == 0
    whole = (tmp_path / "model" / "mtd.safetensors").read_bytes()
    assert whole == (trained / "mtd" / "model" / "mtd.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "step_00000004")
    assert main(["mtd", config, "--out", str(tmp_path), "--resume"]) == 0
    assert (tmp_path / "model" / "mtd.safetensors").read_bytes() == whole


def test_packing_halves_the_weights_and_keeps_their_values(trained: Path, tmp_path: Path) -> None:
    model = trained / "mtd" / "model"
    assert main(["pack", str(model), str(tmp_path / "packed")]) == 0
    assert sorted(p.name for p in (tmp_path / "packed").iterdir()) == sorted(p.name for p in model.iterdir())
    packed, full = (checkpoint.load_weights(folder / "mtd.safetensors") for folder in (tmp_path / "packed", model))
    for name, tensor in full.items():
        torch.testing.assert_close(packed[name], tensor, rtol=1e-3, atol=1e-6)
    sizes = [(folder / "mtd.safetensors").stat().st_size for folder in (tmp_path / "packed", model)]
    assert sizes[0] < 0.7 * sizes[1]  # the names in the header count at this tiny size
    assert main(["pack", str(model), str(tmp_path / "packed")]) == 2
    assert main(["pack", str(tmp_path), str(tmp_path / "more")]) == 2


def test_latents_cached_ahead_are_those_that_training_looks_for(
    trained: Path, cartoons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, cache = trained / "tklvae" / "model" / "tklvae.safetensors", tmp_path / "latents"
    command = ["data", "latents", str(cartoons), "--config", str(trained / "mtd.toml"), "--device", "cpu"]
    assert main([*command, "--tklvae", str(weights), "--out", str(cache)]) == 0
    assert "latents of 2 videos" in capsys.readouterr().out
    files = {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*.npy")}
    by_training = {
        path.relative_to(trained / "latents"): path.read_bytes() for path in (trained / "latents").rglob("*.npy")
    }
    assert len(files) == 2
    assert files == by_training

    def fail(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr("nuwaxl.train.networks.tklvae.TKLVAE.encode", fail)
    assert main([*command, "--tklvae", str(weights), "--out", str(cache)]) == 0
    config = tmp_path / "mtd.toml"
    config.write_text((trained / "mtd.toml").read_text().replace(str(trained / "latents"), str(cache)))
    assert main(["mtd", str(config), "--out", str(tmp_path / "out"), "--steps", "1"]) == 0


def test_latents_of_a_folder_or_by_weights_that_cannot_be_used_are_status_2(
    trained: Path, cartoons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "latents", "--config", str(trained / "mtd.toml"), "--out", str(tmp_path / "latents")]
    assert main([*command, str(cartoons), "--tklvae", "no/such.safetensors"]) == 2
    assert "no/such.safetensors" in capsys.readouterr().err
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert main([*command, str(tmp_path)]) == 2
    assert "broken.mp4" in capsys.readouterr().err
    assert not (tmp_path / "latents").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not toml [", "a TOML file"),
        ('[run]\ndata = "x"\n', "found none of ['out', 'steps', 'batch_size', 'learning_rate']; add them"),
        ('[run]\ndata = "x"\nout = "y"\nsteps = 1\nbatch_size = 1\nlearning_rate = 1.0\ncolour = 3\n', "colour"),
        ('[run]\ndata = "no/such"\nout = "y"\nsteps = 1\nbatch_size = 1\nlearning_rate = 1.0\n', "no/such"),
        (RUN.format(rate="inf"), "learning_rate to be finite"),
        (RUN.format(rate="nan"), "learning_rate to be above 0"),
        pytest.param(RUN.format(rate="9" * 400), "learning_rate", id="a rate of 400 digits"),
        pytest.param(RUN.format(rate="9" * 5000), "a TOML file", id="a rate of 5000 digits"),
        ("[[run]]", "a table [run] of"),
        (RUN.format(rate="1.0") + "seed = 99999999999999999999\n", "[run] seed to be below 2^63"),
        pytest.param("x = " + "[" * 20_000, "nested too deeply", id="nested"),
    ],
)
def test_bad_configurations_are_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.toml"
    path.write_text(text)
    assert main(["tklvae", str(path)]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
    assert list(tmp_path.iterdir()) == [path]  # no output folder either


def test_options_stand_for_keys_that_the_file_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[run]\nbatch_size = 1\nlearning_rate = 1.0\n")
    options = ["--data", "no/such", "--out", str(tmp_path / "out"), "--steps", "1", "--device", "cpu"]
    assert main(["tklvae", str(path), *options]) == 2
    assert "a folder at no/such" in capsys.readouterr().err


def test_a_value_in_the_place_of_a_table_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"mtd": 3}')
    commands = [["describe", str(tmp_path)]]
    for table in ("run", "training", "mtd", "colour"):
        path = tmp_path / f"{table}.toml"
        path.write_text(f"{table} = 3\n")
        commands += [["mtd", str(path)], ["tklvae", str(path)], ["data", "latents", "no/such", "--config", str(path)]]
    for command in commands:
        assert main(command) == 2
        error = capsys.readouterr().err
        assert re.search(r"expected a table \[\w+\] of .*; found 3;", error)
        assert error.count("\n") == 1


@pytest.mark.parametrize("command", [["init", "--random", "sd15", "out"], ["data", "cartoon", "out"]])
@pytest.mark.parametrize("seed", ["-1", str(2**64)])
def test_a_seed_that_torch_cannot_take_is_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], seed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--seed", seed])
    assert "--seed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_configuration_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mtd", str(tmp_path / "none.toml")]) == 2
    assert "none.toml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "said"), [("foo", "found 'foo'"), ("meta", "the device meta; found none that torch sees")]
)
def test_a_device_that_torch_does_not_see_is_refused(device: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        torch_device(device, "--device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused() -> None:
    assert torch_device("auto", "--device").type == "cpu"
    with pytest.raises(InputError, match='use "cpu" for --device'):
        torch_device("cuda:1", "--device")


@pytest.mark.parametrize("package", ["torch", "accelerate"])
def test_a_missing_package_is_one_line_that_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["tklvae", str(tmp_path / "config.toml")]) == 2
    assert capsys.readouterr().err.endswith("pip install 'nuwaxl[train]'\n")


def test_packing_that_is_stopped_leaves_nothing(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        assert any(tmp_path.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_weights", stop)
    assert main(["pack", str(trained / "mtd" / "model"), str(tmp_path / "packed")]) == 130
    assert list(tmp_path.iterdir()) == []


def test_a_model_cannot_be_packed_where_nothing_can_be_made(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert main(["pack", str(trained / "mtd" / "model"), str(tmp_path / "file" / "out")]) == 2


def test_weights_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(NuwaxlError, match=r"writing .* failed: .*make room on the disk.*a training by --resume"):
        checkpoint.save_weights({"weight": torch.zeros(4)}, tmp_path / "absent" / "weights.safetensors")
