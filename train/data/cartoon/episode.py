"""Drawing and writing whole episodes: an mp4 and a caption file a piece."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import av
import numpy as np

from nuwaxl.errors import InputError, reason
from nuwaxl.terminal import bar
from nuwaxl.train.data.cartoon.brush import SCALE, SIZE
from nuwaxl.train.data.cartoon.characters import draw_character, pose_at
from nuwaxl.train.data.cartoon.scenery import SHADOWS, backdrop
from nuwaxl.train.data.cartoon.script import Moment, Script, write_script

FPS = 16
PROCESSES = 2
_KEYFRAME_INTERVAL = 24  # short, so that a far-away frame is reached by decoding few others


def generate(
    folder: str | Path, episodes: int, frames: int = 3600, seed: int = 0, *, force: bool = False
) -> list[Path]:
    """Write `episodes` cartoons of `frames` frames (64 x 64, 16 a second) into `folder`; return the mp4s.

    Episode i is `episode_000i.mp4` with its captions, one line a frame, in `episode_000i.jsonl`. It is a
    function of (seed, i, frames) alone. Raises InputError if a number is out of range, the folder cannot be made, or
    one of these files is there already; with `force` it is replaced, and other files stay. Two processes draw, so a
    script that calls this needs the usual `if __name__ == "__main__"`.
    """
    for name, value in (("episodes", episodes), ("frames", frames)):
        if value < 1:
            raise InputError(
                expected=f"{name} of at least 1", found=str(value), fix=f"give a positive number of {name}"
            )
    if seed < 0:
        raise InputError(expected="a seed of at least 0", found=str(seed), fix="give another seed")
    folder = Path(folder)
    if not force:
        _check_absent(folder, episodes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            expected=f"a folder at {folder}", found=reason(error), fix="name a folder that can be made"
        ) from error
    write = partial(write_episode, folder, frames=frames, seed=seed)
    progress = partial(bar, total=episodes, desc="episodes", unit="episode")
    if episodes == 1:
        return list(progress(iterable=map(write, range(episodes))))
    # Not forked: the caller may run threads (torch does).
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(PROCESSES, episodes), mp_context=spawn) as pool:
        return list(progress(iterable=pool.map(write, range(episodes))))


def _check_absent(folder: Path, episodes: int) -> None:
    videos = [_video(folder, episode) for episode in range(episodes)]
    there = [path for video in videos for path in (video, video.with_suffix(".jsonl")) if os.path.lexists(path)]
    if there:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise InputError(
            expected=f"none of the {episodes} episodes in {folder} yet",
            found=f"{there[0].name}{more}",
            fix="name another folder, or draw them anew by --force",
        )


def _video(folder: Path, episode: int) -> Path:
    return folder / f"episode_{episode:04d}.mp4"


def write_episode(folder: Path, episode: int, *, frames: int, seed: int) -> Path:
    """Write one episode and its captions; returns the path of the mp4, which bears that name only when it is whole."""
    script = episode_script(episode, frames=frames, seed=seed)
    video = _video(folder, episode)
    video.unlink(missing_ok=True)  # an old one must not be left with new captions
    lines = (json.dumps({"frame": n, "text": moment.text}) for n, moment in enumerate(script.moments()))
    video.with_suffix(".jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    partial = video.with_suffix(".partial")
    try:
        _write_mp4(partial, draw_script(script))
        partial.replace(video)
    finally:
        partial.unlink(missing_ok=True)
    return video


def episode_script(episode: int, *, frames: int, seed: int) -> Script:
    """The script of episode number `episode`."""
    return write_script(frames, np.random.default_rng([seed, episode]))


def draw_script(script: Script) -> Iterator[np.ndarray]:
    """The frames of an episode in order, each uint8 (64, 64, 3)."""
    for frame, moment in enumerate(script.moments()):
        yield draw_moment(moment, frame)


def draw_moment(moment: Moment, frame: int) -> np.ndarray:
    """One frame, uint8 (64, 64, 3); `frame` is its number in the episode, by which the clouds move."""
    canvas = backdrop(moment.shot.scenery, frame)
    for act in moment.beat.acts:
        pose = pose_at(act, moment.since, moment.beat.frames)
        draw_character(canvas, act.character, pose, SHADOWS[moment.shot.scenery])
    return np.asarray(canvas.reduce(SCALE))


def _write_mp4(path: Path, frames: Iterator[np.ndarray]) -> None:
    """H.264 with full chroma at high quality: at 64 pixels halved chroma would smear the characters."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv444p"
        stream.gop_size = _KEYFRAME_INTERVAL
        stream.thread_count = 1  # the file must not depend on the number of cores
        stream.options = {"crf": "12", "preset": "veryfast", "tune": "animation"}
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
