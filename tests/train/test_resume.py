"""What a training is gone on with, and what it is refused with: files may have moved, but must be the same."""

import shutil
from pathlib import Path

import pytest

from nuwaxl.errors import InputError
from nuwaxl.train import checkpoint
from nuwaxl.train.data.cartoon import generate
from nuwaxl.train.loop import train
from nuwaxl.train.networks.tklvae import TKLVAE
from tests.train.small import mtd_task, run_config, tklvae_task, write_tklvae


def test_another_set_of_videos_is_refused_on_resume(cartoons: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(cartoons, videos)
    run = run_config(videos, tmp_path / "out", steps=1)
    train(tklvae_task(run), run, resume=False, show_progress=False)
    for path in sorted(videos.glob("episode_0000.*")):
        path.rename(path.with_stem("zz"))
    with pytest.raises(InputError, match=r"\[data\] videos = '2 videos, \w+', which was '2 videos"):
        train(tklvae_task(run), run, resume=True, show_progress=False)


def test_a_moved_folder_is_gone_on_with_and_other_videos_of_equal_lengths_are_not(
    cartoons: Path, tmp_path: Path
) -> None:
    videos, moved = tmp_path / "videos", tmp_path / "moved"
    shutil.copytree(cartoons, videos)
    run = run_config(videos, tmp_path / "out", steps=1)
    train(tklvae_task(run), run, resume=False, show_progress=False)
    videos.rename(moved)
    run = run_config(moved, tmp_path / "out", steps=2)
    task = tklvae_task(run)
    assert [episode.video.parent for episode in task.folder.episodes] == [moved, moved], "the folder given is read"
    train(task, run, resume=True, show_progress=False)
    assert checkpoint.read_progress(tmp_path / "out" / "step_00000002")["configuration"]["run"]["data"] == str(moved)

    generate(moved, 2, 96, 6, force=True)  # another seed
    with pytest.raises(InputError, match=r"\[data\] videos = '2 videos, \w+', which was '2 videos"):
        train(tklvae_task(run), run, resume=True, show_progress=False)


def test_mtd_encodes_nothing_again_of_a_moved_folder_and_nothing_at_all_of_other_videos(
    cartoons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, moved, folder = tmp_path / "videos", tmp_path / "moved", tmp_path / "folder"
    shutil.copytree(cartoons, videos)
    folder.mkdir()
    write_tklvae(folder / "tklvae.safetensors")
    run = run_config(videos, tmp_path / "out", steps=1)
    train(mtd_task(run, folder), run, resume=False, show_progress=False)

    def fail(*_: object) -> None:
        raise AssertionError("encoded")

    monkeypatch.setattr(TKLVAE, "encode", fail)
    videos.rename(moved)
    run = run_config(moved, tmp_path / "out", steps=2)
    train(mtd_task(run, folder), run, resume=True, show_progress=False)
    generate(moved, 2, 96, 6, force=True)
    with pytest.raises(InputError, match=r"\[data\] videos = "):
        mtd_task(run, folder)


def test_moved_weights_and_latents_are_gone_on_with_and_other_weights_are_not(
    cartoons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, folder, moved = (tmp_path / name for name in ("first", "folder", "moved"))
    for each in (first, folder):
        each.mkdir()
        write_tklvae(each / "tklvae.safetensors")
    run = run_config(cartoons, first / "out", steps=1)
    init = train(mtd_task(run, first), run, resume=False, show_progress=False)
    init = init.rename(folder / "init")
    run = run_config(cartoons, tmp_path / "out", steps=1)
    train(mtd_task(run, folder, init=str(init)), run, resume=False, show_progress=False)

    def fail(*_: object) -> None:
        raise AssertionError("encoded")

    monkeypatch.setattr(TKLVAE, "encode", fail)
    folder.rename(moved)
    run = run_config(cartoons, tmp_path / "out", steps=2)
    train(mtd_task(run, moved, init=str(moved / "init")), run, resume=True, show_progress=False)

    with pytest.raises(InputError, match=r"\[data\] init = 'none', which was '\w+'; change"):
        mtd_task(run, moved)
    text = moved / "init" / "text.safetensors"
    weights = checkpoint.load_weights(text)
    checkpoint.save_weights({name: tensor + 1.0 for name, tensor in weights.items()}, text)
    with pytest.raises(InputError, match=r"\[data\] init = '\w+', which was '\w+'; change"):
        mtd_task(run, moved, init=str(moved / "init"))


def test_moved_weights_of_a_tklvae_are_gone_on_with_and_others_are_not(cartoons: Path, tmp_path: Path) -> None:
    init, moved = tmp_path / "init.safetensors", tmp_path / "moved.safetensors"
    write_tklvae(init)
    run = run_config(cartoons, tmp_path / "out", steps=1)
    train(tklvae_task(run, init=str(init)), run, resume=False, show_progress=False)
    init.rename(moved)
    run = run_config(cartoons, tmp_path / "out", steps=2)
    train(tklvae_task(run, init=str(moved)), run, resume=True, show_progress=False)
    weights = checkpoint.load_weights(moved)
    weights["latent_shift"] += 1.0
    checkpoint.save_weights(weights, moved)
    with pytest.raises(InputError, match=r"\[data\] init = '\w+', which was '\w+'; change"):
        train(tklvae_task(run, init=str(moved)), run, resume=True, show_progress=False)


def test_other_captions_and_another_tklvae_are_refused_on_resume(cartoons: Path, tmp_path: Path) -> None:
    videos, folder = tmp_path / "videos", tmp_path / "folder"
    shutil.copytree(cartoons, videos)
    folder.mkdir()
    write_tklvae(folder / "tklvae.safetensors")
    run = run_config(videos, tmp_path / "out", steps=1)
    train(mtd_task(run, folder), run, resume=False, show_progress=False)
    train(mtd_task(run, folder), run, resume=True, show_progress=False)

    captions = sorted(videos.glob("*.jsonl"))[0]
    before = captions.read_text(encoding="utf-8")
    captions.write_text(before.replace("walks", "runs").replace("stands", "sits"), encoding="utf-8")
    with pytest.raises(InputError, match=r"\[data\] captions = '\w+', which was '\w+'; change"):
        train(mtd_task(run, folder), run, resume=True, show_progress=False)
    captions.write_text(before, encoding="utf-8")

    weights = checkpoint.load_weights(folder / "tklvae.safetensors")
    weights["decoder.conv_out.bias"] += 1.0
    checkpoint.save_weights(weights, folder / "tklvae.safetensors")
    with pytest.raises(InputError, match=r"\[data\] latents = '\w+', which was '\w+'; change"):
        train(mtd_task(run, folder), run, resume=True, show_progress=False)
