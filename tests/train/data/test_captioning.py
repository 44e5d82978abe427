"""nuwaxl-train data caption: dense captions by a small GIT model made here, and going on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from nuwaxl.errors import InputError
from nuwaxl.train.cli import main
from nuwaxl.train.data.captioner import Captioner, digest
from nuwaxl.train.data.captioning import Describe, Outcome, caption_folder
from nuwaxl.train.data.captions import Captions
from nuwaxl.train.data.check import check_folder
from nuwaxl.train.data.videos import VideoFile
from tests.train.data.films import write_video

FRAMES = 50


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_video(folder / "a.mp4", frames=FRAMES)
    write_video(folder / "b.webm", "vp9", frames=FRAMES)
    return folder


@pytest.fixture
def folder(films: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in films.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GIT of one layer each, with a tokenizer of 45 words, in transformers' format."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("git")
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = [*special.values(), *(f"word{number}" for number in range(45))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 16}  # fmt: skip
    config = transformers.GitConfig(
        vision_config=vision, vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.GitForCausalLM(config)
    with torch.no_grad():  # large weights, so that pictures make a difference
        for parameter in model.parameters():
            parameter.mul_(20.0 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(folder)
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    words_of = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    transformers.GitProcessor(pictures, words_of).save_pretrained(folder)
    return folder


def entries(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_captions_are_what_the_model_says_of_every_nth_frame(folder: Path, git: Path) -> None:
    assert main(["data", "caption", str(folder), "--model", str(git), "--every", "4", "--batch-size", "3",
                 "--max-tokens", "6", "--device", "cpu"]) == 0  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl", "a.mp4", "b.jsonl", "b.webm"]
    from transformers import AutoModelForCausalLM, AutoProcessor

    model, processor = AutoModelForCausalLM.from_pretrained(git).eval(), AutoProcessor.from_pretrained(git)
    for name in ("a.mp4", "b.webm"):
        captions = (folder / name).with_suffix(".jsonl")
        with VideoFile(folder / name) as file:
            images = file.read(range(0, FRAMES, 4))
        expected = []
        for number, image in enumerate(images):
            pixels = processor(images=[image], return_tensors="pt").pixel_values
            tokens = model.generate(pixel_values=pixels, max_new_tokens=6, do_sample=False)
            text = processor.batch_decode(tokens, skip_special_tokens=True)[0]
            expected.append({"frame": 4 * number, "text": text})
        assert entries(captions) == expected
        assert len({entry["text"] for entry in expected}) > 1, "pictures make a difference"
        assert Captions.load(captions).text_at(5) == expected[1]["text"]
    assert all(report.usable for report in check_folder(folder, decode=False, show_progress=False))


def caption(folder: Path, describe: Describe, every: int = 2, batch_size: int = 4, model: str = "m") -> Outcome:
    return caption_folder(
        folder, lambda: describe, model=model, every=every, batch_size=batch_size, max_tokens=9, show_progress=False
    )


def brightness(frames: Sequence[np.ndarray]) -> list[str]:
    return [f"brightness {frame.mean():.2f}" for frame in frames]


def interrupted_after(batches: int) -> Describe:
    left = [batches]

    def describe(frames: Sequence[np.ndarray]) -> list[str]:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return brightness(frames)

    return describe


def test_an_interrupted_call_leaves_no_caption_file_and_is_taken_up_where_it_stopped(
    folder: Path, films: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    for path in films.iterdir():
        (whole / path.name).write_bytes(path.read_bytes())
    assert caption(whole, brightness).captioned == ["a.mp4", "b.webm"]

    with pytest.raises(KeyboardInterrupt):
        caption(folder, interrupted_after(3))
    assert not list(folder.glob("*.jsonl"))
    assert "a.mp4" in {r.video for r in check_folder(folder, False, False) if not r.usable}
    with (folder / "a.jsonl.partial").open("a") as file:  # as a kill within the write of a batch leaves it
        for number in (24, 26, 28):
            file.write(f'{{"frame": {number}, "text": "{"longer than what takes its place " * 9}"}}\n')
        file.write('{"frame": 30, "text": "brightn')
    with pytest.raises(KeyboardInterrupt):
        caption(folder, interrupted_after(1))
    seen = []

    def describe(frames: Sequence[np.ndarray]) -> list[str]:
        seen.append(len(frames))
        return brightness(frames)

    assert caption(folder, describe, batch_size=1).captioned == ["a.mp4", "b.webm"]
    assert sum(seen) == (25 - 16) + 25, "what was captioned is not done again"
    for name in ("a.jsonl", "b.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert not list(folder.glob("*.partial"))


def test_a_folder_where_no_captions_can_be_written_is_refused_before_any_work(folder: Path) -> None:
    (folder / "b.jsonl.partial").mkdir()
    with pytest.raises(InputError, match=r"where captions can be written; found .*: b\.jsonl\.partial"):
        caption(folder, lambda frames: pytest.fail("captioned"))


@pytest.mark.parametrize("change", [{"every": 3}, {"model": "other"}])
def test_captions_of_another_model_or_option_are_not_continued(folder: Path, change: dict[str, object]) -> None:
    with pytest.raises(KeyboardInterrupt):
        caption(folder, interrupted_after(1))
    with pytest.raises(InputError, match=r"a\.jsonl\.partial"):
        caption(folder, brightness, **change)  # type: ignore[arg-type]
    assert caption(folder, brightness).captioned == ["a.mp4", "b.webm"]


def test_captions_that_are_there_are_kept_and_no_model_is_loaded_for_them(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / f"{name}.jsonl").write_text('{"frame": 0, "text": "mine"}\n')

    def load() -> Describe:
        raise AssertionError("loaded")

    outcome = caption_folder(folder, load, model="m", every=1, batch_size=1, max_tokens=9, show_progress=False)
    assert outcome.kept == ["a.mp4", "b.webm"]
    assert (folder / "a.jsonl").read_text() == '{"frame": 0, "text": "mine"}\n'


def test_a_video_that_cannot_be_read_is_named_and_the_others_are_captioned(
    folder: Path, git: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.mp4").write_bytes(b"no video")
    assert main(["data", "caption", str(folder), "--model", str(git), "--every", "25", "--device", "cpu"]) == 1
    printed = capsys.readouterr()
    assert "a.mp4: Invalid data" in printed.err
    assert "1 videos captioned" in printed.out
    assert (folder / "b.jsonl").exists()
    assert not (folder / "a.jsonl").exists()


def test_frames_without_a_text_take_that_of_their_neighbours(folder: Path) -> None:
    texts = iter(["", "", "one", "", "two"])
    caption(folder, lambda frames: [next(texts, "") for _ in frames], every=10, batch_size=2)
    assert entries(folder / "a.jsonl") == [{"frame": 0, "text": "one"}, {"frame": 40, "text": "two"}]
    assert not (folder / "b.jsonl").exists()


def test_a_video_for_which_the_model_has_no_text_at_all_is_named(folder: Path) -> None:
    outcome = caption(folder, lambda frames: [""] * len(frames))
    assert set(outcome.failed) == {"a.mp4", "b.webm"}
    assert "none" in outcome.failed["a.mp4"]


def test_a_directory_without_such_a_model_is_refused_before_any_work(
    folder: Path, git: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers")
    assert main(["data", "caption", str(folder), "--model", "microsoft/git-base"]) == 2
    assert "no config.json" in capsys.readouterr().err
    words = tmp_path / "words"
    config = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=49)
    transformers.GPT2LMHeadModel(config).save_pretrained(words)
    for path in git.iterdir():
        if "token" in path.name:
            (words / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"a captioning model at .*words"):
        Captioner(words, torch.device("cpu"), 5)


def test_other_weights_have_another_digest(git: Path, tmp_path: Path) -> None:
    for path in git.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert digest(tmp_path) == digest(git)
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    assert digest(tmp_path) != digest(git)


def test_without_transformers_the_error_names_the_extra(
    folder: Path, git: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["data", "caption", str(folder), "--model", str(git)]) == 1
    assert "pip install 'nuwaxl[caption]'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_process_is_taken_up_by_the_next(folder: Path, git: Path, tmp_path: Path) -> None:
    arguments = ["data", "caption", str(folder), "--model", str(git), "--batch-size", "1", "--device", "cpu"]
    code = "import sys; from nuwaxl.train.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"})
    partial = folder / "a.jsonl.partial"
    deadline = time.monotonic() + 300
    while not partial.exists() or partial.read_bytes().count(b"\n") < 4:
        assert process.poll() is None, "killed before it ended"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "b.jsonl").exists()
    done = partial.read_bytes().count(b"\n") - 1 if partial.exists() else FRAMES
    assert done >= 3
    assert main(arguments) == 0
    interrupted = (folder / "a.jsonl").read_bytes()
    (folder / "a.jsonl").unlink()
    assert main(arguments) == 0
    assert (folder / "a.jsonl").read_bytes() == interrupted


def test_a_batch_that_a_kill_left_unfinished_is_made_again_as_it_was(folder: Path) -> None:
    """So that the model is given the batches of an uninterrupted run, whose last bits may differ in others."""
    (folder / "b.webm").unlink()
    given: list[int] = []

    def describe(frames: Sequence[np.ndarray]) -> list[str]:
        if len(given) == 2:
            raise KeyboardInterrupt
        given.append(len(frames))
        return [f"batch {len(given)}"] * len(frames)

    options = {"model": "m", "every": 4, "batch_size": 3, "max_tokens": 6, "show_progress": False}
    with pytest.raises(KeyboardInterrupt):
        caption_folder(folder, lambda: describe, **options)  # type: ignore[arg-type]
    partial = folder / "a.jsonl.partial"
    lines = partial.read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + 6
    partial.write_bytes(b"".join(lines[:-1]))  # the second batch lacks its last line
    sizes: list[int] = []
    caption_folder(folder, lambda: lambda frames: sizes.append(len(frames)) or ["x"] * len(frames), **options)  # type: ignore[arg-type,func-returns-value]
    assert sizes == [3, 3, 3, 1]  # of 13 frames three were done
    assert [entry["text"] for entry in entries(folder / "a.jsonl")] == ["batch 1"] * 3 + ["x"] * 10
