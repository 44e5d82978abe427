"""Prompts to tokens."""

from pathlib import Path

import pytest

from nuwaxl.engine.text import PromptTokenizer
from nuwaxl.errors import InputError


@pytest.fixture
def tokenizer(tiny_bundle: Path) -> PromptTokenizer:
    """The tiny bundle's tokenizer, 3 tokens a prompt."""
    return PromptTokenizer(tiny_bundle / "tokenizer.json", 3)


def test_prompts_are_padded_to_the_length_of_the_text_encoder(tokenizer: PromptTokenizer) -> None:
    tokens = tokenizer(["red sky", "", "nonsense green blue"])
    assert tokens.dtype == "int64"
    assert tokens.tolist() == [[2, 5, 0], [0, 0, 0], [1, 3, 4]]


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(tokenizer: PromptTokenizer) -> None:
    with pytest.warns(UserWarning, match="cut to 3 of its 5 tokens"):
        assert tokenizer(["red green blue sky sea"]).tolist() == [[2, 3, 4]]


def test_padding_that_the_tokenizer_itself_asks_for_is_used(tiny_bundle: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(tiny_bundle / "tokenizer.json"))
    own.enable_padding(pad_id=7, pad_token="blurry")
    own.enable_truncation(max_length=1)
    own.save(str(tmp_path / "tokenizer.json"))
    assert PromptTokenizer(tmp_path / "tokenizer.json", 3)(["red sky"]).tolist() == [[2, 5, 7]]


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="a tokenizer in"):
        PromptTokenizer(tmp_path / "tokenizer.json", 3)


def test_many_long_prompts_are_one_warning(tokenizer: PromptTokenizer) -> None:
    with pytest.warns(UserWarning, match="and 2 other prompts as well") as caught:
        tokenizer(["a b c d e f", "b c d e f a", "c d e f a b", "a"])
    assert len(caught) == 1
