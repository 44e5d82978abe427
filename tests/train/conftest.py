"""A small data set and small training configurations shared by the training tests."""

from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """This process and those it starts compute in one thread each: more wait for each other's on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Weights that a test makes are the same in whatever order tests run."""
    torch.manual_seed(0)
