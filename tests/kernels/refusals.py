"""What the operators refuse, their fake implementations and the C++ forms refuse alike. The Triton forms call the same
checks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from nuwaxl.errors import InputError

from .custom_ops import run_node

_NODES = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs onnx and onnxruntime")
every_form = pytest.mark.parametrize("form", ["cpu", "meta", pytest.param("c++", marks=_NODES)])


def refused(form: str, message: str) -> AbstractContextManager[Any]:
    """That the call in it is refused, as a mistake of the caller, or as an error of the node."""
    if form == "c++":
        return pytest.raises(Exception, match=f"nuwaxl::.*expected .*{message}.*; found .*; export the bundle again")
    return pytest.raises(InputError, match=message)


def call(
    form: str, operator: Callable[..., Any], node: str, shapes: dict[str, tuple[int, ...]], **attributes: Any
) -> None:
    """The operator, or the node, of zeros of these shapes."""
    outputs = 2 if node == "GuidedUpdate" else 1
    tensors = {name: torch.zeros(shape, device="meta" if form == "meta" else "cpu") for name, shape in shapes.items()}
    if form == "c++":
        run_node(node, tensors, outputs, **attributes)
    else:
        operator(**tensors, **{name: value for name, value in attributes.items() if name != "eps"})
