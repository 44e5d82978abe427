"""What the command-line tools share: one-line errors, exit statuses, and argument types."""

import argparse
import errno
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from nuwaxl.errors import InputError, NuwaxlError, one_line
from nuwaxl.files import is_standard_output

MOST_DIGITS = 20  # those of 2**64 - 1

# A disk that is full, read-only or broken is no bug.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Whatever cleans up after Ctrl-C does so after this, too."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and whose help keeps the description's lines."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: error: {one_line(message)}; see {self.prog} --help\n")


def run(prog: str, command: Callable[[], None]) -> int:
    """Run a command and give its exit status: 0 only if it did what was asked.

    Errors that nuwaxl raises on purpose become one line on stderr: status 2 for bad input, 1 for a failure.
    Ctrl-C is 130, SIGTERM 143. Where nobody reads what say() prints any more it is 1 without a word, as other tools
    have it. Anything else is a bug and keeps its traceback.
    """
    with warnings.catch_warnings(), _terminable():
        warnings.showwarning = _show_warning
        try:
            command()
        except InputError as error:
            return _fail(prog, error, EXIT_BAD_INPUT)
        except NuwaxlError as error:
            return _fail(prog, error, EXIT_FAILED)
        except BrokenPipeError:
            _discard_output()
            return EXIT_FAILED
        except OSError as error:
            if error.errno not in _DISK:
                raise
            named = f"writing {error.filename} failed" if error.filename else "writing failed"
            return _fail(prog, NuwaxlError(f"{named}: {os.strerror(error.errno)}; make room on the disk"), EXIT_FAILED)
        except Terminated:
            print(f"{prog}: terminated", file=sys.stderr)
            return EXIT_TERMINATED
        except KeyboardInterrupt:
            print(f"{prog}: interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
    return 0


def say(text: object) -> None:
    """Print on stdout, at once.

    Raises:
        BrokenPipeError: nobody reads it.
        NuwaxlError: it cannot be written.
    """
    try:
        try:
            print(text, flush=True)
        except UnicodeEncodeError:  # a file's name that is not text, or a terminal that knows few letters
            print(str(text).encode("ascii", "backslashreplace").decode(), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise NuwaxlError(f"writing to standard output failed: {error.strerror}; make room, or name another") from error


def said_beside(outputs: Iterable[Path]) -> AbstractContextManager[object]:
    """What say() prints meanwhile goes to standard error if one of the outputs goes to standard output, so that what
    programs read is alone there."""
    return redirect_stdout(sys.stderr) if any(map(is_standard_output, outputs)) else nullcontext()


def positive_int(text: str) -> int:
    """Argument type: a whole number of at least 1."""
    return _whole(text, least=1)


def non_negative_int(text: str) -> int:
    """Argument type: a whole number of at least 0."""
    return _whole(text, least=0)


def seed(text: str) -> int:
    """Argument type: a whole number of 64 bits without sign."""
    return _whole(text, least=0, most=2**64 - 1)


def non_negative_float(text: str) -> float:
    """Argument type: a finite number of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise argparse.ArgumentTypeError(f"expected a finite number of at least 0; found {text!r}")
    return number


def _whole(text: str, least: int, most: int | None = None) -> int:
    expected = f"expected a whole number of at least {least}" + (f" and at most {most}" if most is not None else "")
    if not text.lstrip("-").isdecimal() or not text.isascii():
        raise argparse.ArgumentTypeError(f"{expected}; found {text!r}")
    if len(text) > MOST_DIGITS:
        raise argparse.ArgumentTypeError(f"{expected}, in {MOST_DIGITS} digits; found {len(text)}")
    number = int(text)
    if number < least or (most is not None and number > most):
        raise argparse.ArgumentTypeError(f"{expected}; found {text}")
    return number


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises Terminated meanwhile, unless somebody has other plans with it; a second one ends the process.

    Destructors and callbacks of weak references swallow what is raised in them. A signal that comes in one, Ctrl-C too,
    comes again a moment later.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Terminated

    def swallowed(event: "sys.UnraisableHookArgs") -> None:
        if not isinstance(event.exc_value, KeyboardInterrupt):
            report(event)
            return
        terminated = isinstance(event.exc_value, Terminated)
        number = signal.SIGTERM if terminated else signal.SIGINT
        # Whoever handled it may heed no second one.
        signal.signal(number, terminate if terminated else signal.default_int_handler)
        again.append(threading.Timer(0.02, os.kill, (os.getpid(), number)))
        again[-1].daemon = True
        again[-1].start()

    again: list[threading.Timer] = []
    report, sys.unraisablehook = sys.unraisablehook, swallowed
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        for timer in again:
            timer.cancel()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.unraisablehook = report


def _discard_output() -> None:
    """What is left in stdout's buffer must not fail once more when Python exits."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, sys.stdout.fileno())
    except OSError:  # not a file at all, as in a test
        pass
    finally:
        os.close(devnull)


def _fail(prog: str, error: NuwaxlError, status: int) -> int:
    print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
    return status


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {one_line(message)}", file=sys.stderr)
