"""A build in a process of its own: its reports come through, and whatever ends it leaves nothing."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

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


def real_child(build: str, out: Path) -> list[str]:
    """The child itself, but for what it builds: the body of a function of a request."""
    code = (
        "import fcntl, pathlib, sys, time\nfrom nuwaxl.export.tensorrt import builder\n"
        f"def build(request, report):\n    {build}\nbuilder.build = build\nbuilder._child(pathlib.Path(sys.argv[1]))"
    )
    return [sys.executable, "-c", code, str(out)]


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


def test_a_file_that_fails_is_the_one_that_is_named(tmp_path: Path) -> None:
    out = tmp_path / "plan"
    assert build_apart(REQUEST, out, lambda *_: None, real_child("return b'plan'", out)).seconds > 0
    assert out.read_bytes() == b"plan"
    with pytest.raises(BuildError, match=r"^graph\.onnx: No such file or directory$"):
        build_apart(REQUEST, out, lambda *_: None, real_child("return request.graph.read_bytes()", out))
    out = tmp_path / "absent" / "plan"
    with pytest.raises(BuildError, match=rf"^{out}: No such file or directory$"):
        build_apart(REQUEST, out, lambda *_: None, real_child("return b'plan'", out))


def test_the_child_ends_with_its_parent_whatever_ends_that(tmp_path: Path) -> None:
    """The child holds a lock on a file while it lives."""
    lock = tmp_path / "lock"
    hold = f"file = open({str(lock)!r}, 'w'); fcntl.flock(file, fcntl.LOCK_EX); file.write('held'); file.flush()"
    command = real_child(f"{hold}; time.sleep(120)", tmp_path / "plan")
    code = f"""
import pathlib
from nuwaxl.export.tensorrt.build import Request
from nuwaxl.export.tensorrt.builder import build_apart
request = Request(pathlib.Path("graph.onnx"), "tensorrt-rtx", (89,), (1,), (), (), ())
build_apart(request, pathlib.Path({str(tmp_path / "plan")!r}), print, {command!r})
"""
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: lock.exists() and lock.read_text() == "held")
    finally:
        parent.kill()
        parent.wait()
    with lock.open() as file:
        wait_until(lambda: _is_free(file))


def wait_until(done: Callable[[], bool]) -> None:
    """Give up after a minute."""
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_free(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
