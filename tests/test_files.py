"""Files that tools leave."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nuwaxl import files
from nuwaxl.errors import InputError, RenderError
from nuwaxl.files import check_file, is_file_name, is_name, keep_file, write_file


@pytest.mark.parametrize("name", ["", "a\0b", "half a pair: \ud800", 3, None])
def test_what_no_file_can_be_called(name: object) -> None:
    assert not is_file_name(name)


def test_any_other_name_can_be_a_files_even_one_that_is_no_text() -> None:
    assert is_file_name("a b")
    assert is_file_name("\udcff")  # how Python names the byte 0xff


def test_what_ends_in_a_slash_is_a_folders_name() -> None:
    assert (is_name("a/"), is_file_name("a/")) == (True, False)


def test_a_file_that_cannot_be_written_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name, said in [
        ("", "a name for the output file"),
        (f"{tmp_path}/a.png/", "a name for the output file"),
        (tmp_path / "pipe.png", "not a regular file"),
        (tmp_path / "a.txt", r"ending in \.png"),
        (tmp_path / "absent" / "a.png", "existing folder"),
        (tmp_path / "a" / ("b" * 300) / "c.png", "existing folder"),
        (tmp_path / ("b" * 300) / "c.png", "File name too long"),
        (tmp_path / ("a" * 300 + ".png"), r"a shorter name .* found File name too long, 304 bytes in .* shorter name"),
        (tmp_path / ("a" * 251 + ".png"), r"a shorter name .* found File name too long, 255 bytes in .* shorter name"),
        (f"{__file__}/a.png", r"existing folder .* found Not a directory; give another folder"),
        ("/proc/a.png", "folder /proc that can be written"),
    ]:
        with pytest.raises(InputError, match=said):
            check_file(name, ".png")
    with pytest.raises(InputError, match="a directory"):
        check_file(tmp_path / "folder")
    assert check_file(tmp_path / "a.PNG", ".png") == tmp_path / "a.PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe.png"]


def test_a_file_is_replaced_whole_and_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    for content in (b"one", b"another"):
        write_file(tmp_path / "link", content)
        assert (tmp_path / "real").read_bytes() == content
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(RenderError, match=r"writing .*absent"):
        write_file(tmp_path / "absent" / "file", b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_what_standard_output_goes_to_is_written_in_its_turn_and_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    for name in ("/dev/stdout", str(out)):
        code = f"""if True:
            from nuwaxl.files import check_file, write_file
            print("before", flush=True)
            write_file(check_file({name!r}), b"content\\n")
            print("after")"""
        with out.open("wb") as file:
            subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
        assert out.read_text() == "before\ncontent\nafter\n"
    code = code.replace(str(out), "/dev/stdout")
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (piped.stdout, piped.stderr) == ("before\ncontent\nafter\n", "")
    code = f"from nuwaxl.files import check_file; check_file({str(out)!r}, '.json')"
    with out.open("wb") as file:
        refused = subprocess.run([sys.executable, "-c", code], stdout=file, stderr=subprocess.PIPE, text=True)
    assert "found that standard output or standard error goes there" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_pipe_and_a_device_are_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    assert check_file(pipe) == pipe
    reader.start()
    write_file(pipe, b"content")
    reader.join()
    assert found == [b"content"]
    assert pipe.is_fifo()
    write_file(check_file("/dev/null"), b"content")
    with pytest.raises(RenderError, match="writing /dev/full failed: No space left"):
        write_file(check_file("/dev/full"), b"content")
    read, written = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        write_file(check_file(f"/dev/fd/{written}"), b"nobody reads")
    os.close(written)


def test_what_only_saves_work_is_kept_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "kept"
    keep_file(path, b"first")
    keep_file(path, b"second")
    assert path.read_bytes() == b"second"
    keep_file(path / "below", b"no folder")
    (tmp_path / "folder").mkdir()
    keep_file(tmp_path / "folder", b"no file")
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "folder", tmp_path / "new", path]


def test_processes_that_keep_the_same_file_at_once_leave_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept"
    with files._unfinished(path) as part:
        part.write_bytes(b"half of the first")
        monkeypatch.setattr(files.os, "getpid", lambda: 1)
        keep_file(path, b"second")
        assert part.read_bytes() == b"half of the first"
    assert path.read_bytes() == b"second"
