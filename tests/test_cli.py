"""What the command-line tools share: exit statuses, where their output goes, and what stops them."""

import argparse
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import pytest

from nuwaxl import commands
from nuwaxl.cli import positive_int, run, say, seed
from nuwaxl.errors import InputError, RenderError, one_line


def python(
    code: str, stdout: int | IO[str] = subprocess.PIPE, **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Run code, which may use what is imported here, in a new interpreter."""
    code = f"import sys\nfrom nuwaxl.cli import run, say\n{code}"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONUNBUFFERED": "", **environment}
    return subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False, env=environment
    )


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (None, 0, ""),
        (InputError(expected="a", found="b", fix="c\nd"), 2, "x: error: expected a; found b; c d\n"),
        (RenderError("no\nway"), 1, "x: error: no way\n"),
        (KeyboardInterrupt(), 130, "x: interrupted\n"),
        (
            OSError(28, "no room", "f"),
            1,
            "x: error: writing f failed: No space left on device; make room on the disk\n",
        ),
    ],
)
def test_each_end_has_its_status_and_at_most_one_line(
    error: BaseException | None, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        if error is not None:
            raise error

    assert run("x", command) == status
    assert capsys.readouterr() == ("", said)


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run("x", lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        run("x", lambda: Path("no/such/file").read_bytes())


def test_output_that_nobody_reads_is_status_1_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = python("sys.exit(run('x', lambda: say('written')))", stdout=pipe)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full, which is always out of space")
def test_output_without_room_is_status_1_and_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = python("sys.exit(run('x', lambda: say('written')))", stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("x: error: writing to standard output failed: No space left")
    assert done.stderr.count("\n") == 1


def test_a_tool_without_standard_streams_still_does_its_work() -> None:
    done = python("sys.stdout = sys.stderr = None\nsys.exit(run('x', lambda: say('written')))")
    assert done.returncode == 0, done.stderr


def test_what_the_terminal_cannot_show_is_escaped() -> None:
    done = python("sys.exit(run('x', lambda: say('caf\\u00e9 \\udcff')))", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout, done.stderr) == (0, "caf\\xe9 \\udcff\n", "")


def test_sigterm_cleans_up_and_is_status_143() -> None:
    code = (
        "import time\n"
        "def command():\n"
        "    try:\n"
        "        say('ready')\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        say('cleaned')\n"
        "sys.exit(run('x', command))"
    )
    command = [sys.executable, "-c", f"import sys\nfrom nuwaxl.cli import run, say\n{code}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=60) == ("cleaned\n", "x: terminated\n")
    assert process.returncode == 143


def test_sigterm_is_the_callers_before_and_after() -> None:
    before = signal.getsignal(signal.SIGTERM)
    during = []
    run("x", lambda: during.append(signal.getsignal(signal.SIGTERM)))
    assert during != [before]
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_callers_own_sigterm_handler_stays() -> None:
    before = signal.signal(signal.SIGTERM, own := lambda *_: None)
    try:
        during = []
        run("x", lambda: during.append(signal.getsignal(signal.SIGTERM)))
        assert during == [own]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_command_runs_in_another_thread_where_signals_cannot_be_handled() -> None:
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(run("x", lambda: None)))
    thread.start()
    thread.join()
    assert statuses == [0]


@pytest.mark.parametrize("heeds_one", [False, True])
@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGINT, 130, "x: interrupted\n"), (signal.SIGTERM, 143, "x: terminated\n")],
)
def test_a_signal_that_a_destructor_swallows_comes_again(number: int, status: int, said: str, heeds_one: bool) -> None:
    code = f"""
import os, signal, time
from nuwaxl.cli import Terminated

class Swallows:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})
        for _ in range(1000):
            pass

def first(number, _):
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

def command():
    if {heeds_one}:
        signal.signal({int(number)}, first)
    Swallows()
    time.sleep(30)
    say("went on")

sys.exit(run("x", command))
"""
    result = python(code)
    assert (result.returncode, result.stdout, result.stderr) == (status, "", said)


@pytest.mark.parametrize("tool", ["train", "export", "render", "bench"])
def test_ctrl_c_while_a_tool_is_imported_is_one_line_and_status_130(
    tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "import_module", interrupted)
    assert getattr(commands, tool)() == 130
    assert capsys.readouterr().err == f"nuwaxl-{tool}: interrupted\n"


@pytest.mark.parametrize("tool", ["train", "export", "render", "bench"])
def test_every_tool_starts_and_has_help(
    tool: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"nuwaxl-{tool}", "--help"])
    with pytest.raises(SystemExit) as stop:
        getattr(commands, tool)()
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: nuwaxl-{tool}")


@pytest.mark.parametrize("tool", ["train", "export", "render", "bench"])
def test_every_tool_has_help_where_only_the_engine_is_installed(tool: str) -> None:
    absent = "torch onnx onnxscript safetensors accelerate triton transformers tensorrt_rtx"
    code = f"""
sys.modules.update(dict.fromkeys({absent.split()!r}))  # None there: an import fails
sys.argv[1:] = ["--help"]
from nuwaxl import commands
commands.{tool}()
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: ")


def test_an_export_without_its_packages_names_the_one_that_is_missing() -> None:
    for missing, arguments in (("torch", ["a", "b"]), ("onnx", ["a", "--target", "tensorrt-rtx", "--sm", "89"])):
        code = f"""
sys.modules[{missing!r}] = None
from nuwaxl.export.cli import main
sys.exit(main({arguments!r}))
"""
        result = python(code)
        assert result.returncode == 2
        assert f"expected the package {missing}; found" in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "1e3", "", " 5", "+5", "1_000", "\u0663", "nan", "9" * 5000])
def test_what_is_no_whole_number_above_0_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected a whole number of at least 1"):
        positive_int(text)


def test_a_seed_has_64_bits() -> None:
    assert seed(str(2**64 - 1)) == 2**64 - 1
    with pytest.raises(argparse.ArgumentTypeError, match="at most 18446744073709551615"):
        seed(str(2**64))


def test_say_prints_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    say("written")
    assert capsys.readouterr().out == "written\n"
    assert one_line("a\n b\tc") == "a b c"
