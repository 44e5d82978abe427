"""A small data set and small training configurations shared by the training tests."""

from pathlib import Path

import pytest
import torch

from nuwaxl.train.data.cartoon import generate


@pytest.fixture(scope="session")
def cartoons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two short episodes, as real mp4 files with captions."""
    folder = tmp_path_factory.mktemp("cartoons")
    generate(folder, 2, 96, 5)
    return folder


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Weights that a test makes are the same in whatever order tests run."""
    torch.manual_seed(0)
