"""nuwaxl-train init: a Stable Diffusion folder becomes a model directory, or an error that names what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from nuwaxl.export.model import load_model
from nuwaxl.train import checkpoint
from nuwaxl.train.cli import main
from nuwaxl.train.config import DiffusionConfig, ModelConfig
from tests.train.sd_folder import SCHEDULER, save_sd
from tests.train.test_cli import run_table

SIZE = ["--length", "5", "--height", "64", "--width", "64"]
UNET_WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def model(sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("init") / "model"
    assert main(["init", "--from", str(sd), str(out), *SIZE]) == 0
    return out


@pytest.fixture
def copy(sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd, tmp_path / "copy"))


def weights(folder: Path) -> dict[str, Tensor]:
    return checkpoint.load_weights(folder / "mtd.safetensors")


def change(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    out = folder.parent / "refused"
    assert main(["init", "--from", str(folder), str(out), *SIZE]) == 2
    assert list(folder.parent.glob("refused*")) == []
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


def test_the_model_directory_is_complete_and_the_exporter_reads_it(model: Path) -> None:
    assert sorted(path.name for path in model.iterdir()) == [
        "config.json", "mtd.safetensors", "text.safetensors", "tklvae.safetensors", "tokenizer.json",
    ]  # fmt: skip
    loaded = load_model(model)
    assert (loaded.config.mtd.length, loaded.config.mtd.latent_height) == (5, 8)
    assert torch.equal(loaded.tklvae.latent_scale, torch.full((3,), 0.18215))


def test_the_new_layers_weights_are_a_function_of_the_seed(sd: Path, model: Path, tmp_path: Path) -> None:
    for name, seed in (("same", "0"), ("other", "1")):
        assert main(["init", "--from", str(sd), str(tmp_path / name), *SIZE, "--seed", seed]) == 0
    for path in model.iterdir():
        assert path.read_bytes() == (tmp_path / "same" / path.name).read_bytes()
    other = weights(tmp_path / "other")
    changed = {name for name, tensor in weights(model).items() if not torch.equal(other[name], tensor)}
    assert changed
    assert all("temporal_attention" in name or name.startswith("injection.") for name in changed)


def test_training_goes_on_from_it(model: Path, cartoons: Path, tmp_path: Path) -> None:
    """The configuration needs no network tables: config.json has them. The tokenizer is kept."""
    table = run_table(cartoons, tmp_path / "run", 1)
    table += f'[training]\ndepth = 2\ninit = "{model}"\ntklvae = "{model}/tklvae.safetensors"\n'
    (tmp_path / "mtd.toml").write_text(f'{table}latents = "{tmp_path}/latents"\n[sampler]\nsteps = 9\n')
    assert main(["mtd", str(tmp_path / "mtd.toml")]) == 0
    trained = tmp_path / "run" / "model"
    before, after = (ModelConfig.load(folder / "config.json") for folder in (model, trained))
    assert (before.mtd, before.text, before.tklvae) == (after.mtd, after.text, after.tklvae)
    assert after.sampler.steps == 9
    vocabularies = [Tokenizer.from_file(str(f / "tokenizer.json")).get_vocab() for f in (model, trained)]
    assert vocabularies[0] == vocabularies[1]


def test_calibration_can_leave_the_latents_as_the_unet_knows_them(model: Path, cartoons: Path, tmp_path: Path) -> None:
    table = run_table(cartoons, tmp_path / "run", 1)
    table += f'[training]\nframes = 5\ncalibration_batches = 0\ninit = "{model}/tklvae.safetensors"\n'
    table += "[tklvae]\nlatent_channels = 3\nblock_channels = [8, 8, 8, 8]\nlayers_per_block = 1\nnorm_groups = 4\n"
    (tmp_path / "tklvae.toml").write_text(table)
    assert main(["tklvae", str(tmp_path / "tklvae.toml")]) == 0
    scale = checkpoint.load_weights(tmp_path / "run" / "model" / "tklvae.safetensors")["latent_scale"]
    assert torch.equal(scale, torch.full((3,), 0.18215))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_and_fp16_weights_load(copy: Path, model: Path, shards: int, variant: str | None) -> None:
    unet = UNet2DConditionModel.from_pretrained(copy / "unet")
    (copy / UNET_WEIGHTS).unlink()
    size = sum(p.numel() * 4 for p in unet.parameters())
    if variant:
        unet, size = unet.half(), size // 2
    unet.save_pretrained(copy / "unet", variant=variant, max_shard_size=size * 2 if shards == 1 else size // 2)
    assert (len(list((copy / "unet").glob("*.safetensors"))) > 1) is (shards > 1)
    out = copy.parent / "out"
    assert main(["init", "--from", str(copy), str(out), *SIZE]) == 0
    loaded = weights(out)
    for name, tensor in weights(model).items():
        expected = tensor.half().float() if variant and "temporal" not in name and "injection" not in name else tensor
        assert torch.equal(loaded[name], expected), name


def test_a_missing_an_extra_and_a_misshapen_key_are_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    original = load_file(copy / UNET_WEIGHTS)
    change(copy / UNET_WEIGHTS, lambda tensors: tensors.pop(name))
    assert f"missing: {name}" in refused(copy, capsys)
    save_file({**original, "time_embedding.cond_proj.weight": torch.zeros(1)}, copy / UNET_WEIGHTS)
    assert "extra: time_embedding.cond_proj.weight" in refused(copy, capsys)
    save_file({**original, name: torch.zeros(16, 9)}, copy / UNET_WEIGHTS)
    error = refused(copy, capsys)
    assert f"of another shape: {name} (16, 9) for (16, 8)" in error


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("unet", "flip_sin_to_cos", False),
        ("unet", "norm_eps", 1e-6),
        ("unet", "class_embed_type", "timestep"),
        ("unet", "transformer_layers_per_block", 2),
        ("unet", "attention_head_dim", [2, 4]),
        ("unet", "up_block_types", ["CrossAttnUpBlock2D", "UpBlock2D"]),
        ("unet", "down_block_types", ["CrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"]),
        ("unet", "out_channels", 4),
        ("vae", "mid_block_add_attention", False),
        ("vae", "use_quant_conv", False),
        ("vae", "act_fn", "gelu"),
        ("text_encoder", "hidden_act", "gelu"),
        ("text_encoder", "intermediate_size", 48),
    ],
)
def test_another_structure_is_refused_by_the_name_of_its_key(
    copy: Path, capsys: pytest.CaptureFixture[str], part: str, key: str, value: object
) -> None:
    change_json(copy / part / "config.json", **{key: value})
    error = refused(copy, capsys)
    assert key in error
    assert f"{part}/config.json" in error


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer"])
def test_a_missing_component_is_named(copy: Path, capsys: pytest.CaptureFixture[str], part: str) -> None:
    shutil.rmtree(copy / part)
    assert f"{copy}/{part}" in refused(copy, capsys)


def test_pickled_weights_a_taken_folder_and_odd_sizes_are_refused(
    copy: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / UNET_WEIGHTS).rename(copy / "unet" / "diffusion_pytorch_model.bin")
    assert "a pickle" in refused(copy, capsys)
    assert main(["init", "--from", str(copy), str(model)]) == 2
    assert "remove it" in capsys.readouterr().err
    assert main(["init", "--from", str(copy), str(copy.parent / "out"), "--height", "72"]) == 2
    assert "a multiple of 16" in capsys.readouterr().err


def write_scheduler(folder: Path, **changes: object) -> None:
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({**SCHEDULER, **changes}))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, DiffusionConfig(1000, "scaled_linear", 0.00085, 0.012, "eps")),
        (
            {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "num_train_timesteps": 500},
            DiffusionConfig(500, "cosine", 0.00085, 0.012, "v"),
        ),
        ({"beta_schedule": "linear", "beta_start": 0.0001}, DiffusionConfig(1000, "linear", 0.0001, 0.012, "eps")),
        (
            {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
            DiffusionConfig(1000, "zero_terminal_snr", 0.00085, 0.012, "v"),
        ),
    ],
)
def test_the_scheduler_gives_the_diffusion(copy: Path, changes: dict[str, object], expected: DiffusionConfig) -> None:
    write_scheduler(copy, **changes)
    out = copy.parent / "out"
    assert main(["init", "--from", str(copy), str(out), *SIZE]) == 0
    assert ModelConfig.load(out / "config.json").diffusion == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trained_betas", [0.1, 0.2]),
        ("beta_schedule", "sigmoid"),
        ("prediction_type", "sample"),
        ("beta_start", "small"),
        ("rescale_betas_zero_snr", True),
    ],
)
def test_another_noise_schedule_is_refused_by_the_name_of_its_key(
    copy: Path, capsys: pytest.CaptureFixture[str], key: str, value: object
) -> None:
    write_scheduler(copy, **{key: value})
    error = refused(copy, capsys)
    assert key in error
    assert "scheduler/scheduler_config.json" in error


def test_a_folder_of_the_first_releases_gives_what_todays_gives(copy: Path, model: Path) -> None:
    """As Stable Diffusion 1.4 and 1.5 were published: older names, weights of 1x1 convolutions, an integer buffer."""
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = copy / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = {}
    for name, tensor in load_file(vae).items():
        for new, old in older.items():
            if f"mid_block.attentions.0.{new}." in name:
                name = name.replace(new, old)
                tensor = tensor[:, :, None, None] if name.endswith("weight") and "encoder" in name else tensor
        tensors[name] = tensor.contiguous()
    assert {tensor.dim() for name, tensor in tensors.items() if name.endswith("query.weight")} == {2, 4}
    save_file(tensors, vae)
    text = copy / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(text).items()}
    save_file({**tensors, "text_model.embeddings.position_ids": torch.arange(20)[None]}, text)
    for extra in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.non_ema.safetensors", "model.fp16.bin"):
        (copy / "unet" / extra).write_bytes(b"not read")
    for part in ("safety_checker", "feature_extractor"):
        (copy / part).mkdir()
    change_json(copy / "unet" / "config.json", _diffusers_version="0.6.0", sample_size=64)
    out = copy.parent / "out"
    assert main(["init", "--from", str(copy), str(out), *SIZE]) == 0
    for path in model.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_folder_that_cannot_be_made_is_refused(sd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["init", "--from", str(sd), str(tmp_path / "file" / "model"), *SIZE]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_interrupted_init_leaves_nothing_and_the_next_one_does_not_mind_a_killed_one(
    sd: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        assert (tmp_path / ".model.partial" / "tklvae.safetensors").exists()
        raise KeyboardInterrupt

    command = ["init", "--from", str(sd), str(tmp_path / "model"), *SIZE]
    with monkeypatch.context() as patch:
        patch.setattr("nuwaxl.train.init.load_mtd", stop)
        assert main(command) == 130
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "half.safetensors").touch()
    assert main(command) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == sorted(p.name for p in model.iterdir())


def test_others_may_read_the_weights_as_they_may_the_configuration(model: Path) -> None:
    assert len({path.stat().st_mode for path in model.iterdir()}) == 1
