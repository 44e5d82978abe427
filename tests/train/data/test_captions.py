"""Captions hold until the next entry; a bad caption file is refused with file and line."""

from pathlib import Path

import pytest

from nuwaxl.errors import InputError
from nuwaxl.train.data.captions import Captions


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_a_caption_holds_until_the_next_entry(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        '{"frame": 0, "text": "Mona waves"}',
        "",
        '{"frame": 3, "text": " Mona waves "}',
        '{"frame": 10, "text": "Rex j\u2028umps", "score": 0.5}',
    )
    captions = Captions.load(path)
    assert captions == Captions((0, 10), ("Mona waves", "Rex j\u2028umps"))
    assert [captions.text_at(frame) for frame in (0, 9, 10, 10**9)] == ["Mona waves"] * 2 + ["Rex j\u2028umps"] * 2


def test_there_is_no_caption_before_the_first_frame() -> None:
    with pytest.raises(InputError, match="-1"):
        Captions((0,), ("Mona waves",)).text_at(-1)


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[2, 3]",
        '{"text": "no frame"}',
        '{"frame": 2}',
        '{"frame": 2, "text": "  "}',
        '{"frame": 2, "text": 7}',
        '{"frame": "2", "text": "a"}',
        '{"frame": 2.0, "text": "a"}',
        '{"frame": true, "text": "a"}',
        '{"frame": -2, "text": "a"}',
        '{"frame": 1, "text": "the frame of the line before"}',
        '{"frame": 0, "text": "out of order"}',
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(tmp_path: Path, line: str) -> None:
    good = ['{"frame": 0, "text": "a"}', '{"frame": 1, "text": "b"}']
    assert Captions.load(write(tmp_path / "good.jsonl", *good)).texts == ("a", "b")
    with pytest.raises(InputError, match=r"bad\.jsonl, line 3"):
        Captions.load(write(tmp_path / "bad.jsonl", *good, line))


def test_captions_that_leave_the_first_frame_out_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"frame 0 first in .*late\.jsonl; found 5"):
        Captions.load(write(tmp_path / "late.jsonl", '{"frame": 5, "text": "a"}'))


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
def test_an_empty_or_undecodable_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"odd\.jsonl"):
        Captions.load(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl"):
        Captions.load(tmp_path / "none.jsonl")
