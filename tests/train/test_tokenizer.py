"""The caption tokenizer: CLIP's conventions at the demo's size."""

from pathlib import Path

import pytest

from nuwaxl.errors import NuwaxlError
from nuwaxl.train.tokenizer import END, START, save_tokenizer, train_tokenizer

CAPTIONS = [f"{who} walks to the {side} on the beach" for who in ("Mona", "Rex") for side in ("left", "right")]


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return train_tokenizer(CAPTIONS, vocabulary=360, tokens=12)


def test_every_prompt_has_the_same_length_with_start_and_end(tokenizer) -> None:  # type: ignore[no-untyped-def]
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    for prompt in ("", "Mona", CAPTIONS[0], "walks " * 40):
        ids = tokenizer.encode(prompt).ids
        assert len(ids) == 12
        assert ids[0] == start
        assert end in ids[1:]


def test_case_and_spacing_do_not_matter(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer.encode("MONA  walks ").ids == tokenizer.encode("mona walks").ids


def test_training_words_are_single_tokens_and_new_words_are_spelt(tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert tokenizer.encode("on the beach").tokens[:5] == [START, "Ġon", "Ġthe", "Ġbeach", END]
    assert tokenizer.decode(tokenizer.encode("zügig").ids) == " zügig"


def test_training_is_deterministic() -> None:
    first, second = (train_tokenizer(reversed(CAPTIONS), 360, 12).to_str() for _ in range(2))
    assert first == second == train_tokenizer(CAPTIONS, 360, 12).to_str()


def test_a_tokenizer_that_cannot_be_written_is_told_of_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(NuwaxlError, match=r"writing .*tokenizer\.json failed: No such file or directory"):
        save_tokenizer(train_tokenizer([], 258, 3), tmp_path / "absent" / "tokenizer.json")
