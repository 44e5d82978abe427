"""Runners that an entry point brings: found by the device's first word, opened with the rest, refused in one line."""

from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from nuwaxl.engine import Engine, Story
from nuwaxl.engine.devices import parse_devices
from nuwaxl.engine.runners import plugins
from nuwaxl.errors import InputError

TOY = """
from nuwaxl.engine.devices import Worker
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner
from nuwaxl.errors import InputError

opened = []


def processor(device):
    if device != "a:1":
        raise InputError(expected="toy:a:1", found=f"toy:{device}", fix="name that")
    return "a toy"


def precision(device):
    return "bf16"


def open_runner(bundle, device, threads):
    opened.append((device, threads))
    return OnnxRuntimeRunner(bundle, Worker("toy", threads, alone=True))
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin of this name, and one whose module lacks what it imports."""
    (tmp_path / "toy_runner.py").write_text(TOY)
    (tmp_path / "broken_runner.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = [EntryPoint(name, f"{name}_runner", plugins.GROUP) for name in ("toy", "broken")]
    monkeypatch.setattr(plugins, "_installed", lambda: {entry.name: entry for entry in entries})


@pytest.mark.usefixtures("toy")
def test_a_plugins_device_is_one_worker_beside_the_cpus() -> None:
    workers = parse_devices("cpu:1, toy:a:1")
    assert [(worker.name, worker.plugin) for worker in workers] == [("cpu#0", None), ("toy:a:1#0", "toy:a:1")]
    assert not any(worker.alone for worker in workers)
    assert workers[1].description.startswith("a toy, ")
    assert [worker.precision for worker in workers] == [None, "bf16"]


@pytest.mark.usefixtures("toy")
def test_a_render_on_it_gives_the_frames_of_the_engines_own(tiny_bundle: Path, story_file: Path) -> None:
    story, frames = Story.load(story_file), []
    for devices in ("cpu", "toy:a:1"):
        with Engine.open(tiny_bundle, devices=devices) as engine:
            frames.append(np.concatenate([clip.frames for clip in engine.render(story, frames=12)]))
    assert np.array_equal(*frames)

    import toy_runner  # type: ignore[import-not-found]

    assert [device for device, _ in toy_runner.opened] == ["a:1"]


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ("toy:b", r"expected toy:a:1; found toy:b"),
        ("broken:0", r"what the runner 'broken' needs; found No module named 'a_package_that_nobody_has'"),
        ("other:0", r"devices: cpu, cpu:N, cuda:I, tensorrt:I, tensorrt-rtx:I, ray, ray:N, broken:DEVICE, toy:DEVICE"),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_line(devices: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_devices(devices)


def test_what_is_installed_with_the_package_is_found() -> None:
    assert "torch" in plugins.plugin_names()
