"""What the command-line tools share: one-line errors, exit statuses, and argument types."""

import argparse
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from nuwaxl.errors import InputError, NuwaxlError

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


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
    Ctrl-C is 130. Anything else is a bug and keeps its traceback.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            command()
        except InputError as error:
            return _fail(prog, error, EXIT_BAD_INPUT)
        except NuwaxlError as error:
            return _fail(prog, error, EXIT_FAILED)
        except KeyboardInterrupt:
            print(f"{prog}: interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
    return 0


def one_line(message: object) -> str:
    """A message without line breaks."""
    return " ".join(str(message).split())


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
    number = int(text) if len(text) <= 20 else None
    if number is None or number < least or (most is not None and number > most):
        raise argparse.ArgumentTypeError(f"{expected}; found {text}")
    return number


def _fail(prog: str, error: NuwaxlError, status: int) -> int:
    print(f"{prog}: error: {one_line(error)}", file=sys.stderr)
    return status


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"warning: {one_line(message)}", file=sys.stderr)
