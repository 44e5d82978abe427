"""The tiny bundle of the engine's tests, and how the tests call nuwaxl-bench."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nuwaxl.bench.cli import main
from tests.engine.conftest import own_bundle, tiny_bundle

__all__ = ["own_bundle", "tiny_bundle"]


@pytest.fixture
def bench(tiny_bundle: Path) -> Callable[..., int]:
    """Runs the command in this process on the tiny bundle, unless another is named; gives its exit status."""

    def run(*argv: object) -> int:
        try:
            return main(["--bundle", str(tiny_bundle), *(str(argument) for argument in argv)])
        except SystemExit as stop:  # argparse's way out
            return int(stop.code or 0)

    return run
