"""A build in a process of its own: its reports come through, and whatever ends it leaves nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nuwaxl.errors import InputError
from nuwaxl.export.tensorrt.build import BuildError, Request
from nuwaxl.export.tensorrt.builder import build_apart

REQUEST = Request(Path("graph.onnx"), "tensorrt-rtx", (89,), (1, 2), ("refit",), (), ())


def child(code: str, out: Path) -> list[str]:
    """A child that writes half a plan, then runs the code."""
    begin = (
        "import json, sys, time, os\nrequest = json.loads(sys.stdin.readline())\nopen(sys.argv[1], 'w').write('half')\n"
    )
    return [sys.executable, "-c", begin + code, str(out)]


def test_reports_and_the_result_come_through_and_the_request_goes_in(tmp_path: Path) -> None:
    out, seen = tmp_path / "plan", []
    code = """
assert request["batches"] == [1, 2] and request["graph"] == "graph.onnx", request
print(json.dumps({"phase": "tactics", "fraction": 0.5}), flush=True)
print(json.dumps({"seconds": 1.5, "peak_bytes": 7}))
"""
    built = build_apart(REQUEST, out, lambda *report: seen.append(report), child(code, out))
    assert (built.seconds, built.peak_bytes) == (1.5, 7)
    assert seen == [("tactics", 0.5)]
    assert out.read_text() == "half"


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("os.abort()", BuildError, r"tensorrt-rtx's process ended with status -6"),
        ("sys.exit('TensorRT said no')", BuildError, "status 1: TensorRT said no"),
        ("print(json.dumps({'kind': 'build', 'error': 'out of memory'}))", BuildError, "out of memory"),
        (
            "print(json.dumps({'kind': 'input', 'error': {'expected': 'a', 'found': 'b', 'fix': 'c'}}))",
            InputError,
            "expected a; found b; c",
        ),
    ],
)
def test_a_child_that_fails_leaves_no_file(tmp_path: Path, code: str, kind: type[Exception], message: str) -> None:
    out = tmp_path / "plan"
    with pytest.raises(kind, match=message):
        build_apart(REQUEST, out, lambda *_: None, child(code, out))
    assert not out.exists()


def test_what_the_caller_raises_kills_the_child_at_once(tmp_path: Path) -> None:
    out = tmp_path / "plan"
    code = f"""
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
print(json.dumps({{"phase": "tactics", "fraction": 0.5}}), flush=True)
time.sleep(600)
"""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build_apart(REQUEST, out, interrupt, child(code, out))
    assert time.monotonic() - started < 30
    assert not out.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_ctrl_c_in_the_command_ends_it_promptly_with_the_bundle_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs the extra tensorrt-rtx")
    import shutil

    from nuwaxl.engine.bundle import demo_bundle

    folder = tmp_path / "demo"
    shutil.copytree(demo_bundle(), folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    arguments = [str(folder), "--target", "tensorrt-rtx", "--sm", "89", "--batches", "1,2,4,8,16"]
    command = subprocess.Popen(
        [sys.executable, "-m", "nuwaxl.export.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("plans/*")) and time.monotonic() < deadline and command.poll() is None:
        # The folder is made when the builds begin.
        if (folder / "plans").exists():
            break
        time.sleep(0.05)
    time.sleep(1.0)
    started = time.monotonic()
    command.send_signal(signal.SIGINT)
    _, error = command.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert command.returncode == 130, error
    assert error == "nuwaxl-export: interrupted\n"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
