"""Devices on a real Ray cluster of several nodes, which are processes of this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nuwaxl.engine import Engine, Progress, Story
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.bundle_copies import kept_bundle
from nuwaxl.engine.runners import ray_cluster
from nuwaxl.errors import DeviceLost, InputError, RenderError

ray = pytest.importorskip("ray", reason="needs the extra ray")
Cluster = pytest.importorskip("ray.cluster_utils").Cluster

STORY = Story([(0, "red sky"), (9, "blue sea")])
NODE = {"object_store_memory": 100_000_000}


PATIENCE_S = 300.0  # of a machine that others keep busy


def patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Ray's question for a node that starts, which gives up for good after half a minute without an answer."""

    def ask(*arguments: Any, **options: Any) -> Any:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return get_node(*arguments, **options)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    return ask


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster whose head, the node that this process is on, has no CPUs to give. Add nodes with has_nodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # On a busy machine nodes and actors start slowly, the more so at the low priority that Ray gives to actors.
        patch.setenv("RAY_agent_register_timeout_ms", "300000")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setattr("ray._private.services.get_node", patient(ray._private.services.get_node))
        cluster = Cluster(
            initialize_head=True,
            head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False, "include_log_monitor": False},
        )
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def has_nodes(cluster: Any, count: int) -> list[Any]:
    """The cluster's nodes of one CPU each, made so many; in the order of the actors of "ray"."""
    for _ in range(count - len(cluster.worker_nodes)):
        cluster.add_node(wait=False, num_cpus=1, **NODE)
    cluster.wait_for_nodes(PATIENCE_S)
    assert len(cluster.worker_nodes) == count
    return sorted(cluster.worker_nodes, key=lambda node: str(node.node_id))


@pytest.fixture(scope="module")
def undisturbed(tiny_bundle: Path) -> Callable[[int], np.ndarray]:
    """The frames as one device of this machine makes them."""

    def render(frames: int) -> np.ndarray:
        with Engine.open(tiny_bundle, devices="cpu:1") as engine:
            return frames_of(engine, frames)

    return render


def frames_of(engine: Engine, frames: int, progress: Callable[[Progress], None] | None = None) -> np.ndarray:
    """A video's frames."""
    return np.concatenate([clip.frames for clip in engine.render(STORY, frames=frames, progress=progress)])


def pids(engine: Engine) -> list[int]:
    """The actors' processes."""
    return [runner.ask("host").pid for runner in engine._runners]


def wait_for_the_end_of(processes: list[int]) -> None:
    """Wait until they are gone."""
    deadline = time.monotonic() + PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() for pid in processes):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_frames_are_those_of_one_device_and_a_killed_actor_changes_nothing(
    cluster: Any, tiny_bundle: Path, undisturbed: Callable[[int], np.ndarray]
) -> None:
    has_nodes(cluster, 2)
    with Engine.open(tiny_bundle, devices="ray") as engine:
        assert [(worker.name, worker.threads) for worker in engine.workers] == [("ray#0", 1), ("ray#1", 1)]
        assert kept_bundle(Bundle.open(tiny_bundle).sha256) is not None
        processes = pids(engine)
        assert os.getpid() not in processes
        assert len(set(processes)) == 2

        video = engine.render(STORY, frames=100)
        frames = np.concatenate([clip.frames for clip in video])
        assert np.abs(frames.astype(int) - undisturbed(100)).max() <= 1
        assert all(busy > 0 for busy in video.stats.device_busy_s.values())

        def kill(progress: Progress) -> None:
            if progress.phase == "diffuse" and progress.done > 40 and Path(f"/proc/{processes[1]}").exists():
                os.kill(processes[1], signal.SIGKILL)

        frames = frames_of(engine, 400, kill)
        assert np.abs(frames.astype(int) - undisturbed(400)).max() <= 1
        with pytest.raises(DeviceLost, match=r"expected ray#1 on .* to answer"):
            engine._runners[1].encode_text(np.zeros((1, 3), np.int64))
        assert len(frames_of(engine, 20)) == 20  # the next render does without it, too
    wait_for_the_end_of(processes)
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_node_removed_in_the_middle_changes_nothing_and_without_any_the_render_fails(
    cluster: Any, tiny_bundle: Path, undisturbed: Callable[[int], np.ndarray]
) -> None:
    nodes = has_nodes(cluster, 2)

    def remove(number: int) -> Callable[[Progress], None]:
        def when_under_way(progress: Progress) -> None:
            node, render = nodes[number], engine._render
            assert render is not None
            began = any(batch.device == f"ray#{number}" for batch in render.recorder.batches)
            if began and node in cluster.worker_nodes:
                cluster.remove_node(node, allow_graceful=False)

        return when_under_way

    with Engine.open(tiny_bundle, devices="ray") as engine:
        engine.costs()
        video = engine.render(STORY, frames=1000, progress=remove(1))
        frames = np.concatenate([clip.frames for clip in video])
        assert np.abs(frames.astype(int) - undisturbed(1000)).max() <= 1
        batches = [batch.device for batch in video.stats.batches]
        assert 0 < batches.count("ray#1") < batches.count("ray#0")
        with pytest.raises(DeviceLost):
            engine._runners[1].encode_text(np.zeros((1, 3), np.int64))

        with pytest.raises(RenderError, match=r"ray#0.*gone"):
            frames_of(engine, 1000, remove(0))


@pytest.mark.slow
def test_two_engines_share_a_cluster_and_one_that_does_not_fit_is_refused_soon(
    cluster: Any, tiny_bundle: Path, undisturbed: Callable[[int], np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    has_nodes(cluster, 2)
    began = time.monotonic()
    with pytest.raises(InputError, match=r"with 3 free CPUs.*found 2 free of 2, on 3 nodes; use \"ray:2\""):
        Engine.open(tiny_bundle, devices="ray:3")
    assert time.monotonic() - began < 60  # most of it for the connection
    assert not ray.is_initialized()

    monkeypatch.setattr(ray_cluster, "_ROOM_S", 1.0)
    with Engine.open(tiny_bundle, devices="ray:1") as first, Engine.open(tiny_bundle, devices="ray:1") as second:
        with pytest.raises(InputError, match="found 0 free of 2, on 3 nodes after 1 s; add nodes"):
            Engine.open(tiny_bundle, devices="ray:1")
        clips = zip(first.render(STORY, frames=60), second.render(STORY, frames=60), strict=True)
        pairs = [(one.frames, other.frames) for one, other in clips]
        for frames in zip(*pairs, strict=True):
            assert np.abs(np.concatenate(frames).astype(int) - undisturbed(60)).max() <= 1
        processes = pids(first) + pids(second)
        first.close()
        assert len(frames_of(second, 20)) == 20  # the connection is still there
    wait_for_the_end_of(processes)
    assert not ray.is_initialized()


@pytest.mark.slow
def test_a_connection_of_the_caller_is_used_and_left(cluster: Any, tiny_bundle: Path) -> None:
    has_nodes(cluster, 2)
    ray.init(address=cluster.address, log_to_driver=False)
    with Engine.open(tiny_bundle, devices="ray:1") as engine:
        assert len(frames_of(engine, 20)) == 20
    assert ray.is_initialized()
    ray.shutdown()


@pytest.mark.slow
def test_ctrl_c_leaves_no_actor_behind(cluster: Any, tiny_bundle: Path, story_file: Path, tmp_path: Path) -> None:
    has_nodes(cluster, 2)
    options = ["--bundle", str(tiny_bundle), "--devices", "ray", "--frames", "20000", "--steps", "100"]
    command = [sys.executable, "-m", "nuwaxl.engine.cli", str(story_file), "--out", str(tmp_path / "out.mp4"), *options]
    process = subprocess.Popen(command)
    while not any("RunnerActor.move" in name for name in actor_processes().values()):  # a step, or its measurement
        assert process.poll() is None
        time.sleep(0.05)
    actors = list(actor_processes())
    assert len(actors) == 2
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_S) == 130
    wait_for_the_end_of(actors)
    assert not (tmp_path / "out.mp4").exists()


def actor_processes() -> dict[int, str]:
    """Processes of this machine that are our actors, and what they do: Ray puts it into their name."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                name = (folder / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if name.startswith("ray::RunnerActor"):
                found[int(folder.name)] = name
    return found


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("ray://127.0.0.1:10001", "another form"),
        ("local", "another form"),
    ],
)
def test_a_cluster_that_is_not_there_is_an_error_at_once(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=rf"RAY_ADDRESS={address}.*{message}.*ray start"):
        Engine.open(tiny_bundle, devices="ray")
