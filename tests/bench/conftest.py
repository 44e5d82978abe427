"""The tiny bundle of the engine's tests, and how the tests call nuwaxl-bench."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nuwaxl.bench.cli import main
from tests.engine.conftest import tiny_bundle

__all__ = ["tiny_bundle"]


@pytest.fixture
def bench(tiny_bundle: Path) -> Callable[..., int]:
    """Runs the command in this process on the tiny bundle, unless another is named; gives its exit status."""

    def run(*argv: object) -> int:
        try:
            return main(["--bundle", str(tiny_bundle), *(str(argument) for argument in argv)])
        except SystemExit as stop:  # argparse's way out
            return int(stop.code or 0)

    return run


@pytest.fixture
def own_story(tmp_path: Path) -> Path:
    """A story of two scenes in the words of the tiny bundle, own.toml in the test's folder."""
    path = tmp_path / "own.toml"
    path.write_text('[[scene]]\nat = 0\nprompt = "red sky"\n[[scene]]\nat = 9\nprompt = "blue sea"\n')
    return path
