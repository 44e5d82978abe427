"""Prompts to tokens."""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nuwaxl.engine.checks import shown
from nuwaxl.errors import InputError


class PromptTokenizer:
    """The bundle's tokenizer, cutting and padding to the l_p tokens of the text encoder."""

    def __init__(self, path: Path, prompt_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception for a file it cannot read
            raise InputError(
                expected=f"a tokenizer in {path}", found=str(error), fix="export the bundle again"
            ) from error
        padding = self._tokenizer.padding or {"pad_id": 0, "pad_token": "<pad>"}
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._uncut = Tokenizer.from_str(self._tokenizer.to_str())
        self._tokenizer.enable_truncation(max_length=prompt_tokens)
        self._tokenizer.enable_padding(length=prompt_tokens, pad_id=padding["pad_id"], pad_token=padding["pad_token"])
        self._prompt_tokens = prompt_tokens

    @property
    def size(self) -> int:
        """Tokens are below it."""
        return int(self._tokenizer.get_vocab_size())

    def __call__(self, prompts: list[str]) -> NDArray[np.int64]:
        """Tokens of prompts, (n, l_p). Prompts that are too long are cut, with one warning for all."""
        counts = [len(encoding.ids) for encoding in self._uncut.encode_batch(prompts)]
        cut = [(prompt, n) for prompt, n in zip(prompts, counts, strict=True) if n > self._prompt_tokens]
        if cut:
            prompt, count = cut[0]
            others = f", and {len(cut) - 1} other prompts as well" if len(cut) > 1 else ""
            warnings.warn(
                f"prompt cut to {self._prompt_tokens} of its {count} tokens: {shown(prompt)}{others}",
                UserWarning,
                stacklevel=2,
            )
        return np.array([encoding.ids for encoding in self._tokenizer.encode_batch(prompts)], dtype=np.int64)
