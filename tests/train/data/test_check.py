"""nuwaxl-train data check: what each video of a folder is, and why one cannot be used."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nuwaxl.errors import InputError
from nuwaxl.train.cli import main
from nuwaxl.train.data.check import check_folder, table
from tests.train.data.films import FRAMES, HEIGHT, WIDTH, write_video


def captions(path: Path, *frames: int) -> None:
    path.write_text("".join(f'{{"frame": {frame}, "text": "scene {frame}"}}\n' for frame in frames))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    write_video(folder / "a.mp4")
    captions(folder / "a.jsonl", 0, 40, 80)
    write_video(folder / "b.webm", "vp9", frames=50)
    captions(folder / "b.jsonl", 0)
    return folder


@pytest.fixture(scope="module")
def mixed(good: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good videos among all that can be wrong with others."""
    folder = tmp_path_factory.mktemp("mixed")
    for path in good.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    whole = (good / "a.mp4").read_bytes()
    for name in ("late", "long", "none", "words"):
        (folder / f"{name}.mp4").write_bytes(whole)
    captions(folder / "late.jsonl", 30)
    captions(folder / "long.jsonl", 0, FRAMES)
    (folder / "words.jsonl").write_text("no json\n")
    (folder / "garbage.mkv").write_bytes(b"this is no video" * 100)
    middle = len(whole) // 2
    (folder / "middle.mp4").write_bytes(whole[:middle] + bytes(middle // 4) + whole[middle + middle // 4 :])
    captions(folder / "middle.jsonl", 0)
    write_video(folder / "short.mkv", "h264")
    (folder / "short.mkv").write_bytes((folder / "short.mkv").read_bytes()[:-3000])
    return folder


def test_a_good_folder_is_status_0_and_its_table_says_what_it_holds(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", str(good)]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = f"{WIDTH}x{HEIGHT}"
    assert lines[0].split() == ["video", "frames", "duration", "size", "codec", "captions", "captioned", "problem"]
    assert lines[1].split() == ["a.mp4", "160", "0:00:06", size, "h264", "3", "160/160"]
    assert lines[2].split() == ["b.webm", "50", "0:00:02", size, "vp9", "1", "50/50"]
    assert lines[3] == "2 of 2 videos can be trained on, 210 frames"


def test_on_standard_output_the_report_is_alone(good: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(good), "--quick", "--json", "/dev/stdout"]) == 0
    said = capfd.readouterr()
    assert [video["video"] for video in json.loads(said.out)["videos"]] == ["a.mp4", "b.webm"]
    assert "2 of 2 videos can be trained on" in said.err


def test_each_bad_video_is_named_with_its_reason_and_the_others_are_reported(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    assert main(["data", "check", str(mixed), "--json", str(out)]) == 1
    written = json.loads(out.read_text())
    assert written["decoded"] is True
    videos = {video["video"]: video for video in written["videos"]}
    assert list(videos) == sorted(path.name for path in mixed.iterdir() if path.suffix != ".jsonl")
    assert {name for name, video in videos.items() if video["usable"]} == {"a.mp4", "b.webm"}
    assert videos["a.mp4"]["frames"] == videos["a.mp4"]["captioned_frames"] == FRAMES
    assert (videos["a.mp4"]["width"], videos["a.mp4"]["height"], videos["a.mp4"]["fps"]) == (WIDTH, HEIGHT, 25.0)
    assert videos["a.mp4"]["duration_s"] == 6.4
    assert "Invalid data" in videos["garbage.mkv"]["problem"]
    assert "Invalid data" in videos["middle.mp4"]["problem"]
    assert "ended prematurely" in videos["short.mkv"]["problem"]
    assert videos["garbage.mkv"]["frames"] is None
    late = videos["late.mp4"]
    assert (late["captioned_frames"], late["first_uncaptioned"]) == (FRAMES - 30, 0)
    assert late["caption_problem"] == "no caption before frame 30"
    assert videos["a.mp4"]["first_uncaptioned"] is None
    assert videos["long.mp4"]["caption_problem"] == f"a caption of frame {FRAMES}, past the end"
    assert videos["none.mp4"]["caption_problem"] == "no none.jsonl"
    assert (videos["none.mp4"]["captioned_frames"], videos["none.mp4"]["first_uncaptioned"]) == (0, 0)
    assert "line 1" in videos["words.mp4"]["caption_problem"]
    printed = capsys.readouterr()
    bad = sorted(set(videos) - {"a.mp4", "b.webm"})
    assert len(bad) == 7
    assert f"7 of 9 that are not ({', '.join(bad)})" in printed.err
    assert len(printed.out.splitlines()) == 1 + 9 + 1


def test_a_quick_check_reads_packets_only(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("nuwaxl.train.data.videos.VideoFile.verify", fail)
    reports = {report.video: report for report in check_folder(mixed, decode=False, show_progress=False)}
    assert reports["a.mp4"].usable
    assert not reports["garbage.mkv"].usable
    assert not reports["short.mkv"].usable


def test_videos_of_several_sizes_are_pointed_out(good: Path) -> None:
    from dataclasses import replace

    reports = check_folder(good, decode=False, show_progress=False)
    assert "one size" not in table(reports)
    assert f"1 of {WIDTH}x{HEIGHT}, 1 of 32x32" in table([reports[0], replace(reports[1], width=32, height=32)])


def test_what_check_takes_training_takes_and_the_other_way_round(mixed: Path, tmp_path: Path) -> None:
    from nuwaxl.train.data.episodes import EpisodeFolder

    for report in check_folder(mixed, decode=True, show_progress=False):
        if report.video == "middle.mp4":
            continue  # training sees it when it reads the frame
        folder = tmp_path / report.video
        folder.mkdir()
        for path in mixed.glob(f"{Path(report.video).stem}.*"):
            (folder / path.name).write_bytes(path.read_bytes())
        if report.usable:
            assert EpisodeFolder(folder).episodes[0].frames == report.frames
        else:
            with pytest.raises(InputError, match=Path(report.video).stem):
                EpisodeFolder(folder)


def test_the_documented_command_moves_aside_what_training_cannot_use(mixed: Path, tmp_path: Path) -> None:
    from nuwaxl.train.data.episodes import EpisodeFolder

    text = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```\nnuwaxl-train data check FOLDER --json report.json\n(.*?)```", text, re.DOTALL)
    folder, aside = tmp_path / "a folder", tmp_path / "aside"
    shutil.copytree(mixed, folder)
    aside.mkdir()
    assert main(["data", "check", str(folder), "--json", str(tmp_path / "report.json")]) == 1
    script = block.replace("FOLDER", str(folder)).replace("ASIDE", str(aside)).replace("python ", f"{sys.executable} ")
    subprocess.run(["sh", "-euc", script], cwd=tmp_path, check=True)
    assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl", "a.mp4", "b.jsonl", "b.webm"]
    assert len(list(folder.iterdir())) + len(list(aside.iterdir())) == len(list(mixed.iterdir()))
    assert len(EpisodeFolder(folder)) == 2


@pytest.mark.parametrize("arguments", [["no/such"], ["{good}", "--json", "no/such/folder/x.json"], ["{empty}"]])
def test_bad_arguments_are_status_2(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["data", "check", *(text.format(good=good, empty=tmp_path) for text in arguments)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_unknown_options_are_status_2(good: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["data", "check", str(good), "--frames"])
