"""Files that tools leave."""

from pathlib import Path

import pytest

from nuwaxl import files
from nuwaxl.errors import InputError, RenderError
from nuwaxl.files import check_file, is_file_name, keep_file, write_file


@pytest.mark.parametrize("name", ["", "a\0b", "half a pair: \ud800", 3, None])
def test_what_no_file_can_be_called(name: object) -> None:
    assert not is_file_name(name)


def test_any_other_name_can_be_a_files_even_one_that_is_no_text() -> None:
    assert is_file_name("a b")
    assert is_file_name("\udcff")  # how Python names the byte 0xff


def test_a_file_that_cannot_be_written_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name, said in [
        ("", "a name for the output file"),
        (tmp_path / "a.txt", r"ending in \.png"),
        (tmp_path / "absent" / "a.png", "existing folder"),
        (tmp_path / ("a" * 300 + ".png"), "File name too long"),
        ("/proc/a.png", "folder /proc that can be written"),
    ]:
        with pytest.raises(InputError, match=said):
            check_file(name, ".png")
    for name, said in [(tmp_path / "folder", "a directory"), ("/dev/null", "not a regular file")]:
        with pytest.raises(InputError, match=said):
            check_file(name)
    assert check_file(tmp_path / "a.PNG", ".png") == tmp_path / "a.PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_file_is_replaced_whole_and_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    for content in (b"one", b"another"):
        write_file(tmp_path / "link", content)
        assert (tmp_path / "real").read_bytes() == content
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(RenderError, match=r"writing .*absent"):
        write_file(tmp_path / "absent" / "file", b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


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
