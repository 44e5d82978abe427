"""Triton runs as an interpreter on the CPU where there is no CUDA device; it reads the variable when it is imported."""

import os
import sys

import pytest

torch = pytest.importorskip("torch")

if not torch.cuda.is_available():
    assert "triton" not in sys.modules or os.environ.get("TRITON_INTERPRET") == "1", "triton was imported too early"
    os.environ["TRITON_INTERPRET"] = "1"
