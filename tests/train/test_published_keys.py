"""Keys of the three published networks that are missing, extra, of another shape or there twice, each by its name."""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from nuwaxl.errors import InputError
from nuwaxl.train.diffusers_folder import mtd_config, text_config, tklvae_config
from nuwaxl.train.init import init_model
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.networks.pretrained import load_published, weight_files
from nuwaxl.train.networks.text import CLIPText
from nuwaxl.train.networks.tklvae import TKLVAE
from tests.train.sd_folder import save_sd

NETWORKS: dict[str, Callable[[Path], nn.Module]] = {
    "unet": lambda folder: MTD(mtd_config(folder, 3, 20, 8, 8)),
    "vae": lambda folder: TKLVAE(tklvae_config(folder)),
    "text_encoder": lambda folder: CLIPText(text_config(folder)),
}
# One weight of each, a matrix, and what its file of another release may call it.
WEIGHTS = {
    "unet": "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    "vae": "decoder.mid_block.attentions.0.to_q.weight",
    "text_encoder": "encoder.layers.0.mlp.fc1.weight",
}


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sd(tmp_path_factory.mktemp("sd"))


def weights_of(folder: Path) -> tuple[Path, dict[str, Tensor], str]:
    """The file of a component, its tensors, and how it names the weight of `WEIGHTS`."""
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    return path, tensors, next(name for name in tensors if name.endswith(WEIGHTS[folder.name]))


@pytest.mark.parametrize("part", NETWORKS)
def test_every_wrong_key_is_named(sd: Path, part: str, tmp_path: Path) -> None:
    folder = tmp_path / part
    folder.mkdir()
    network = NETWORKS[part](sd)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    _, tensors, name = weights_of(sd / part)
    shape = tuple(tensors[name].shape)
    cases: list[tuple[dict[str, Any], str]] = [
        ({name: None}, rf"missing: \S*{WEIGHTS[part]}"),
        ({"some.more.weight": torch.zeros(2)}, "extra: some.more.weight"),
        ({name: torch.zeros(shape[1], shape[0] + 1)}, rf"of another shape: {name} .* for \({shape[0]}, {shape[1]}\)"),
        # As many values, in another order: no reason to take them.
        ({name: torch.zeros(1, 1, *shape)}, f"of another shape: {name}"),
    ]
    for changes, message in cases:
        changed = {key: tensor for key, tensor in {**tensors, **changes}.items() if tensor is not None}
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(InputError, match=message):
            load_published(network, folder)
        assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items()), "half loaded"
    save_file(tensors, folder / "model.safetensors")
    load_published(network, folder)
    assert not all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("vae", "decoder.mid_block.attentions.0.query.weight"),
        ("text_encoder", f"text_model.{WEIGHTS['text_encoder']}"),
    ],
)
def test_a_weight_under_two_names_is_refused_by_both(sd: Path, part: str, other: str, tmp_path: Path) -> None:
    folder = tmp_path / part
    folder.mkdir()
    _, tensors, name = weights_of(sd / part)
    if name == other:
        other = WEIGHTS[part]
    save_file({**tensors, other: tensors[name] + 1}, folder / "model.safetensors")
    with pytest.raises(InputError, match=rf"twice: .*{WEIGHTS[part].rsplit('.', 2)[0]}"):
        load_published(NETWORKS[part](sd), folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}, r"the shard \S*two.safetensors"),
        ({"weight_map": {"a": 3}}, r"a weight_map .*index.json; found {'a': 3}"),
        ({"weight_map": ["one.safetensors"]}, "a weight_map from keys to files"),
        ({}, "a weight_map .*found None"),
        ([], "a JSON object"),
    ],
)
def test_an_index_that_does_not_name_its_shards_is_refused(tmp_path: Path, index: object, message: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        (
            "text_encoder",
            {"hidden_size": 12, "intermediate_size": 48},
            r"cross_attention_dim \(unet\) and hidden_size \(text_encoder\) to be equal .*found 8 and 12",
        ),
        (
            "vae",
            {"latent_channels": 4},
            r"in_channels \(unet\) and latent_channels \(vae\) to be equal .*found 3 and 4",
        ),
        ("text_encoder", {"vocab_size": 300}, r"at most 300 tokens \(vocab_size of text_encoder\)"),
    ],
)
def test_components_that_do_not_belong_together_are_refused_before_any_weight_is_read(
    sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, changes: dict[str, int], message: str
) -> None:
    folder = Path(shutil.copytree(sd, tmp_path / "sd"))
    path = folder / part / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    monkeypatch.setattr("nuwaxl.train.init.load_published", None)
    with pytest.raises(InputError, match=message):
        init_model(folder, tmp_path / "out", 5, 64, 64)
    assert [entry.name for entry in tmp_path.iterdir()] == ["sd"]


# What a config.json may say otherwise and the network is the same: read elsewhere, or without effect on it.
READ_OR_HARMLESS = {
    "unet": {
        "sample_size", "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels",
        "layers_per_block", "norm_num_groups", "cross_attention_dim", "attention_head_dim", "num_attention_heads",
        "use_linear_projection", "dropout", "upcast_attention",
        # Of embeddings that are refused by the key that asks for them.
        "addition_time_embed_dim", "projection_class_embeddings_input_dim", "addition_embed_type_num_heads",
        "reverse_transformer_layers_per_block",
    },
    "vae": {
        "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups", "sample_size",
        "scaling_factor", "shift_factor", "force_upcast", "down_block_types", "up_block_types",
    },
}  # fmt: skip


@pytest.mark.parametrize("part", READ_OR_HARMLESS)
def test_every_option_of_diffusers_is_read_harmless_or_refused(sd: Path, tmp_path: Path, part: str) -> None:
    network = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}[part]
    options = {name: p.default for name, p in inspect.signature(network.__init__).parameters.items() if name != "self"}
    assert READ_OR_HARMLESS[part] < set(options)
    folder = Path(shutil.copytree(sd, tmp_path / "sd"))
    path = folder / part / "config.json"
    table = json.loads(path.read_text())
    refused = sorted(set(options) - READ_OR_HARMLESS[part])
    assert len(refused) >= 8
    for name in refused:
        path.write_text(json.dumps({**table, name: "another"}))
        with pytest.raises(InputError, match=f"{name} to be"):
            NETWORKS[part](folder)
    path.write_text(json.dumps(table))
    NETWORKS[part](folder)
