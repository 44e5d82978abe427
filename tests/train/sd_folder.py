"""A whole Stable Diffusion folder at a tiny size, tokenizer included."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from nuwaxl.train.tokenizer import END, START
from tests.train.oracle import save_text, save_unet, save_vae

WORDS = [
    f"a {who} isn't {where} the {what}, 12 o'clock!"
    for who in ("cat", "dog")
    for where in ("on", "under")
    for what in ("table", "house")
]

# scheduler_config.json of Stable Diffusion 1.5.
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def save_tokenizer(folder: Path, vocabulary: int = 600) -> None:
    """CLIP's two files, trained here: the bytes, the bytes with </w>, merges, and the two special tokens last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2 - len(alphabet),
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([word for text in WORDS for word in text.split()], trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    pieces = [*alphabet, *(f"{sign}</w>" for sign in alphabet)]
    pieces += sorted(set(trained["vocab"]) - set(pieces), key=trained["vocab"].get)
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {piece: number for number, piece in enumerate([*pieces, START, END])}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in trained["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def save_sd(folder: Path) -> Path:
    """Two levels, attention on one of them."""
    save_unet(
        folder,
        attention=(True, False),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=8,
        in_channels=3,
        out_channels=3,
    )
    save_vae(folder, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=3)
    save_text(
        folder,
        vocab_size=700,
        hidden_size=8,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=20,
    )
    save_tokenizer(folder / "tokenizer")
    return folder
