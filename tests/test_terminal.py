"""Bars and lines on stderr, whatever it is."""

import fcntl
import os
import struct
import sys
import termios

import pytest

from nuwaxl.terminal import bar, note


def test_a_bar_is_drawn_on_a_terminal_that_does_not_know_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 0, 0, 0, 0))
    with os.fdopen(theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with bar(total=4, desc="step") as drawn:
            drawn.update(4)
        with bar(False, total=4, desc="silent") as silent:
            silent.update(4)
        said = os.read(ours, 2**16)
    os.close(ours)
    assert b"step: 100%" in said
    assert b"4/4" in said
    assert b"silent" not in said
    assert silent.disable


def test_nothing_is_drawn_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(total=4) as drawn:
        drawn.update(4)
    note("said")
    assert drawn.disable
    assert capsys.readouterr() == ("", "said\n")


def test_nothing_is_said_where_stderr_is_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with bar(total=4) as drawn:
        drawn.update(4)
    note("said")
    assert drawn.disable
    assert capsys.readouterr().out == ""
