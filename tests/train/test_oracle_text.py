"""The text encoder is transformers' CLIPTextModel, the tokenizer its CLIPTokenizer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from transformers import CLIPTokenizer

from nuwaxl.engine.text import PromptTokenizer
from nuwaxl.errors import InputError
from nuwaxl.train.diffusers_folder import text_config
from nuwaxl.train.networks.pretrained import load_published
from nuwaxl.train.networks.text import CLIPText
from nuwaxl.train.presets import SD15
from nuwaxl.train.tokenizer import clip_tokenizer
from tests.train.oracle import relative_error, save_text
from tests.train.sd_folder import WORDS, save_tokenizer

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "one layer": {"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "four layers": {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 3},
}
PROMPTS = [
    "",
    "a cat",
    *WORDS,
    "A CAT's   house\twasn't\nthere, they're  gone; I'll I've I'd I'm",
    "2026 years: 3.14, 1st & 2nd!?... --- (x) [y] _z_ #1 @home",
    "Ünïcödé naïve café Straße İstanbul ﬁ e\u0301 日本語 привет 🙂🏽 ½ ² \u00a0nbsp",
    "   leading and trailing   ",
    "the literal <|endoftext|> and <|startoftext|> in a prompt, and <|EndOfText|>",
    "cat " * 100,
]


def compare(folder: Path, tokens: torch.Tensor, **sizes: Any) -> None:
    reference = save_text(folder, **sizes)
    network = CLIPText(text_config(folder)).eval().requires_grad_(False)
    load_published(network, folder / "text_encoder")
    assert relative_error(network(tokens), reference(tokens).last_hidden_state) < 1e-5


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_text_encoder_is_clips(name: str, tmp_path: Path) -> None:
    tokens = torch.randint(60, (3, 9), generator=torch.Generator().manual_seed(0))
    compare(tmp_path, tokens, vocab_size=60, max_position_embeddings=9, **CONFIGURATIONS[name])


@pytest.mark.slow
def test_the_text_encoder_is_clips_at_its_real_size(tmp_path: Path) -> None:
    compare(tmp_path, torch.randint(49408, (2, 77), generator=torch.Generator().manual_seed(0)))
    assert text_config(tmp_path) == SD15.text


@pytest.mark.parametrize("tokens", [20, 77])
def test_the_tokenizer_gives_clips_ids(tokens: int, tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    reference = CLIPTokenizer.from_pretrained(tmp_path)
    tokenizer = clip_tokenizer(tmp_path, tokens)
    for prompt in PROMPTS:
        expected = reference(prompt, padding="max_length", max_length=tokens, truncation=True)["input_ids"]
        assert tokenizer.encode(prompt).ids == expected, prompt
    assert len(tokenizer.encode("a cat on the table").ids) == tokens
    # Merges are used: a trained word is one token, and an unseen one several.
    assert len([t for t in tokenizer.encode("house").tokens if "|" not in t]) == 1
    assert len([t for t in tokenizer.encode("zebra").tokens if "|" not in t]) == 5


@pytest.mark.filterwarnings("ignore:prompt cut")
def test_the_engine_reads_the_saved_tokenizer_alike(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    tokenizer = clip_tokenizer(tmp_path, 77)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    expected = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    assert np.array_equal(PromptTokenizer(tmp_path / "tokenizer.json", 77)(PROMPTS), expected)


def test_a_tokenizer_folder_without_its_files_or_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"vocab\.json and merges\.txt"):
        clip_tokenizer(tmp_path, 77)
    save_tokenizer(tmp_path)
    vocab = json.loads((tmp_path / "vocab.json").read_text())
    vocab["<|end|>"] = vocab.pop("<|endoftext|>")
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(InputError, match="endoftext"):
        clip_tokenizer(tmp_path, 77)
