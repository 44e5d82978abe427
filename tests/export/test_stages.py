"""What an export says of itself while a graph takes long."""

import io
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")

from nuwaxl import terminal
from nuwaxl.export import stages, write
from nuwaxl.export.cli import main
from nuwaxl.export.model import Model
from nuwaxl.export.parity import Parity, check_parity
from nuwaxl.export.samples import graph_sources
from nuwaxl.export.stages import Stages
from nuwaxl.export.weights import EXTERNAL_FROM


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, seconds in ((terminal, "_FIRST_S", 0.2), (terminal, "_EVERY_S", 0.1), (stages, "_TICK_S", 0.02)):
        monkeypatch.setattr(module, name, seconds)


def wait_for(pattern: str, stream: io.StringIO) -> None:
    deadline = time.monotonic() + 30
    while not re.search(pattern, stream.getvalue()):
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.01)


def test_a_stage_that_takes_long_is_said_again_and_again_and_a_short_one_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    with Stages() as stage:
        stage("text: tracing")
        stage("step: tracing")
        wait_for(r"^(nuwaxl-export: step: tracing  00:\d\d\n){2}", stream)
        stage()
        said = stream.getvalue()
        time.sleep(0.3)
    assert stream.getvalue() == said
    assert "text" not in said


def test_on_a_terminal_each_stage_is_a_line_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with Stages() as stage:
        stage("text: tracing")
        wait_for(r"text: tracing  00:0[1-9]", stream)  # drawn by the thread
        stage("step: tracing")
        wait_for(r"step: tracing  00:\d\d", stream)
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().endswith("\r"), "the last is wiped"
    assert stream.getvalue().split("\r")[-2].strip() == ""


def test_nothing_is_said_where_stderr_is_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with Stages() as stage:
        stage("text: tracing")
        time.sleep(0.4)
    assert capsys.readouterr().out == ""


def test_a_graph_goes_through_all_stages_in_order(model: Model, tmp_path: Path) -> None:
    said: list[str] = []
    source = next(iter(graph_sources(model)))
    graph = write._write_graph(source, tmp_path, EXTERNAL_FROM, stage=said.append)
    check_parity(source, tmp_path / graph.file, 1, batches=(1,), stage=said.append)
    assert said == [
        "tracing",
        "translating to ONNX, and optimizing",
        "writing its weights",
        "writing and checking its file",
        "running torch",
        "opening it in ONNX Runtime",
        "running ONNX Runtime",
    ]


def test_the_command_says_its_stages_and_none_while_nothing_is_done(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())

    def export(*_: object, **options: Callable[..., None]) -> None:
        options["stage"]("step: tracing")
        wait_for(r"nuwaxl-export: step: tracing  00:\d\d\n", stream)
        options["progress"](write.Written("step", 10**6, Parity(1e-6), 0.5))
        said = stream.getvalue()
        time.sleep(0.3)
        assert stream.getvalue() == said
        options["stage"]("decode: tracing")
        wait_for(r"nuwaxl-export: decode: tracing  00:\d\d\n", stream)

    monkeypatch.setattr(write, "export_bundle", export)
    assert main([str(checkpoint), str(tmp_path / "out")]) == 0
    assert all(thread.name != "stages" for thread in threading.enumerate())
