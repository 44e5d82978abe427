"""A file that is missing is told of in words: what was expected, what was found, what to do."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from nuwaxl.errors import InputError
from nuwaxl.train import checkpoint
from nuwaxl.train.cli import main
from nuwaxl.train.config import ModelConfig
from nuwaxl.train.curve import read_log
from nuwaxl.train.data.captions import Captions
from nuwaxl.train.data.cartoon import generate
from nuwaxl.train.diffusers_folder import read_json
from nuwaxl.train.networks.lpips import LPIPS
from nuwaxl.train.resume import files_fingerprint
from nuwaxl.train.run import read_tables
from nuwaxl.train.tokenizer import clip_tokenizer, load_tokenizer

RAW = re.compile(r"errno|os error|Error\(|\n", re.IGNORECASE)


@pytest.mark.parametrize(
    "read",
    [
        read_tables,
        checkpoint.load_weights,
        checkpoint.read_progress,
        ModelConfig.load,
        Captions.load,
        read_json,
        load_tokenizer,
        lambda path: clip_tokenizer(path, 77),
        lambda path: read_log(path, ["loss"]),
        lambda path: LPIPS.load([str(path.with_suffix(".pth"))]),
        lambda path: LPIPS.load([str(path.with_suffix(".safetensors"))]),
        lambda path: files_fingerprint([path]),
    ],
)
@pytest.mark.parametrize("there", ["nothing", "a file"])
def test_what_is_missing_is_told_of_in_words(tmp_path: Path, read: Callable[[Path], object], there: str) -> None:
    path = tmp_path / "absent"
    if there == "a file":
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "absent"
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(tmp_path) in caught.value.expected
    assert caught.value.found.startswith(("No such file", "Not a directory", "Error while reading BPE files"))
    assert not RAW.search(str(caught.value))


def test_a_folder_that_cannot_be_made_is_told_of_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError) as caught:
        generate(tmp_path / "file" / "folder", 1, 3, 1)
    assert caught.value.found == "Not a directory"


def test_a_configuration_that_is_missing_is_one_to_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mtd", str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err == (
        f"nuwaxl-train: error: expected a TOML file at {tmp_path / 'none.toml'}; found No such file or directory; "
        "name one, or correct it\n"
    )
