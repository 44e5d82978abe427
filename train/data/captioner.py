"""Texts for pictures by an image captioning model such as GIT (Wang et al. 2022), through transformers."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nuwaxl.errors import InputError, NuwaxlError, reason


class Captioner:
    """A captioning model from a local directory in transformers' format; nothing is ever downloaded.

    Greedy, so that a picture has one text; in half precision on a GPU. Raises InputError if the directory holds no
    such model, NuwaxlError if transformers is not installed.
    """

    def __init__(self, folder: Path, device: torch.device, max_tokens: int) -> None:
        try:
            import transformers
        except ImportError as error:
            raise NuwaxlError(
                "expected transformers for captioning; found none; install it by: pip install 'nuwaxl[caption]'"
            ) from error
        check_model(folder)
        transformers.utils.logging.disable_progress_bar()
        try:
            self._processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise _no_model(folder, reason(error)) from error
        takes_pictures = "pixel_values" in inspect.signature(self._model.forward).parameters
        if not takes_pictures or not hasattr(self._processor, "image_processor"):
            raise _no_model(folder, f"{type(self._model).__name__}, which takes no pictures")
        self._dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._model.to(device, self._dtype).eval()
        self._device, self._max_tokens = device, max_tokens

    @torch.inference_mode()
    def describe(self, frames: Sequence[np.ndarray]) -> list[str]:
        """A text for each uint8 RGB picture (H, W, 3); the model may have nothing to say, which is an empty one."""
        pixels = self._processor(images=list(frames), return_tensors="pt").pixel_values
        tokens = self._model.generate(
            pixel_values=pixels.to(self._device, self._dtype),
            max_new_tokens=self._max_tokens,
            do_sample=False,
            num_beams=1,
        )
        return [" ".join(text.split()) for text in self._processor.batch_decode(tokens, skip_special_tokens=True)]


def check_model(folder: Path) -> None:
    """Raises InputError if this is no model directory, before transformers takes its name for one to download."""
    if not (folder / "config.json").is_file():
        raise _no_model(folder, "no config.json")


def digest(folder: Path) -> str:
    """Of all files of a model directory: other weights, another tokenizer, another digest."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            whole.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


def _no_model(folder: Path, found: str) -> InputError:
    return InputError(
        expected=f"a captioning model at {folder}, as transformers saves one, with safetensors",
        found=found,
        fix="name the directory of a GIT model, for example a local copy of microsoft/git-base-coco",
    )
