"""The kernels need torch; without a CUDA device Triton interprets them (tests/conftest.py)."""

import pytest

pytest.importorskip("torch")
