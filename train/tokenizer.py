"""Tokenizers of prompts, fixed length l_p: trained on the captions themselves, or CLIP's own from its files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nuwaxl.errors import InputError, reason
from nuwaxl.files import write_file

START, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], vocabulary: int, tokens: int) -> Tokenizer:
    """Byte-pair encoding of at most `vocabulary` entries (256 of them the bytes, so that any word can be spelt).

    Every prompt becomes exactly `tokens` = l_p ids. As in CLIP, the end token also pads, and an over-long prompt is
    cut with its end token kept. Raises InputError if `vocabulary` does not hold the bytes, start and end.
    """
    least = 256 + 2
    if vocabulary < least:
        raise InputError(
            expected=f"[text] vocabulary to be {least} or more (256 bytes, start and end)",
            found=str(vocabulary),
            fix="give a larger one, or an init whose tokenizer is smaller",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sorted(set(captions)), trainer)
    return _framed(tokenizer, tokens)


def clip_tokenizer(folder: Path, tokens: int) -> Tokenizer:
    """CLIP's tokenizer from its vocab.json and merges.txt, giving exactly `tokens` = l_p ids a prompt.

    CLIP splits a lower-cased prompt into English contractions, runs of letters, single digits and runs of other signs;
    the last piece of each carries the suffix </w>. Raises InputError if a file is missing or of another kind.
    """
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    try:
        model = models.BPE.from_file(str(vocabulary), str(merges), unk_token=END, end_of_word_suffix="</w>")
    except Exception as error:  # tokenizers raises plain Exception for a file it cannot read
        raise InputError(
            expected=f"CLIP's vocab.json and merges.txt in {folder}", found=reason(error), fix="download them again"
        ) from error
    tokenizer = Tokenizer(model)
    for token in (START, END):
        if tokenizer.token_to_id(token) is None:
            raise InputError(expected=f"the token {token} in {vocabulary}", found="none", fix="download it again")
    tokenizer.add_special_tokens([START, END])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    return _framed(tokenizer, tokens)


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer.json. Raises NuwaxlError, naming the file, if it cannot be written."""
    write_file(path, tokenizer.to_str(pretty=True).encode())


def load_tokenizer(path: Path) -> Tokenizer:
    """A saved tokenizer.json. Raises InputError if it cannot be read."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception for a file it cannot read
        raise InputError(
            expected=f"a tokenizer in {path}", found=reason(error), fix="name a complete model directory"
        ) from error


def _framed(tokenizer: Tokenizer, tokens: int) -> Tokenizer:
    """Start and end token around every prompt, cut and padded (by the end token, as in CLIP) to `tokens`."""
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, start), (END, end)]
    )
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(pad_id=end, pad_token=END, length=tokens)
    return tokenizer
