"""The kernels that a bundle's graphs call, compiled for the GPUs that are asked for, without one (kernels/aot.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from nuwaxl.errors import InputError, NuwaxlError
from nuwaxl.export.samples import GraphSource
from nuwaxl.kernels.aot import KERNELS_FILE, Request, norm_requests, requests_to_json

_EXAMPLE_BATCH = 2


def kernel_requests(sources: Iterable[GraphSource]) -> set[Request]:
    """What the operators `nuwaxl::*` in the graphs need, seen by running each once on shapes alone."""
    asked: set[Request] = set()
    for source in sources:
        inputs = source.sample(_EXAMPLE_BATCH, torch.Generator().manual_seed(0)).inputs
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as shapes, _Recorder(asked):
            source.module(*(shapes.from_tensor(tensor) for tensor in inputs.values()))
    return asked


def write_kernels(folder: Path, asked: Iterable[Request], architectures: Sequence[int]) -> None:
    """Write NAME.sm_NN.{cubin,ptx} and kernels.json into `folder`.

    Raises:
        InputError: triton is not installed.
        NuwaxlError: a kernel cannot be compiled.
    """
    # In a process of its own: triton decides when it is imported whether it compiles or interprets.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRITON_INTERPRET")}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(requests_to_json(sorted(asked, key=lambda request: request.name)), file)
        file.flush()
        command = [sys.executable, "-m", "nuwaxl.kernels.aot", str(folder), "--requests", file.name]
        command += ["--sm", ",".join(str(architecture) for architecture in architectures)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0 and (folder / KERNELS_FILE).is_file():
        return
    lines = done.stderr.strip().splitlines() or ["no message"]
    if "No module named 'triton'" in lines[-1]:
        raise InputError(expected="the package triton", found="none", fix="pip install 'nuwaxl[kernels]'")
    raise NuwaxlError(f"expected the kernels to compile; found {lines[-1]}; see python -m nuwaxl.kernels.aot --help")


class _Recorder(TorchDispatchMode):
    """Adds to `asked` what every call of an operator needs."""

    def __init__(self, asked: set[Request]) -> None:
        super().__init__()
        self._asked = asked

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        if function.namespace == "nuwaxl":
            values = dict(zip((each.name for each in function._schema.arguments), arguments, strict=False))
            values = {each.name: each.default_value for each in function._schema.arguments} | values | (keywords or {})
            self._asked.update(_requests(function._schema.name.removeprefix("nuwaxl::"), values))
        return function(*arguments, **(keywords or {}))


def _requests(name: str, values: dict[str, Any]) -> list[Request]:
    """The kernels of one call, by the operator's name and its arguments by name."""
    if name == "temporal_attention":
        qkv: Tensor = values["qkv"]
        return [Request(name, qkv.dtype, qkv.shape[1], qkv.shape[3] // 3, heads=values["heads"])]
    x: Tensor = values["x"]
    if name == "temporal_conv":
        scale: Tensor | None = values["scale"]
        branches = 1 if scale is None else x.shape[0] // scale.shape[0]
        kernel = "temporal_conv" if scale is None else "temporal_conv_injection"
        taps = values["weight"].shape[0]
        return [Request(kernel, x.dtype, x.shape[1], x.shape[3], taps=taps, branches=branches)]
    if name == "group_norm_silu":
        kernel = "group_norm_silu" if values["silu"] else "group_norm"
        norm = Request(kernel, x.dtype, x.shape[1], x.shape[3], groups=values["groups"], eps=values["eps"])
        return norm_requests(norm, x.shape[2])
    return [Request(name, x.dtype)]
