"""The bundle's compiled kernels as TensorRT's ahead-of-time plugins take them (plugins.py): which there are, and their
PTX with the parameters that TensorRT passes and no others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nuwaxl.engine.plans import KERNELS_FILE
from nuwaxl.errors import NuwaxlError

DOMAIN = "nuwaxl"

# More dynamic shared memory than this a launch gets only after the function was told so; whether TensorRT does is not
# documented. Nodes whose kernel wants more keep their body.
_SHARED_LIMIT = 48 * 1024

_PTX_VERSION = (8, 8)

# ONNX node -> kernel in kernels.json, and the arguments of the kernel that the plugin passes, outputs last.
NODES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "TemporalAttention": ("temporal_attention", ("qkv", "pixels", "out")),
    "TemporalConv": ("temporal_conv", ("x", "weight", "bias", "pixels", "out")),
    "TemporalConvInjection": ("temporal_conv_injection", ("x", "weight", "bias", "scale", "shift", "pixels", "out")),
}


@dataclass(frozen=True)
class Kernel:
    """One kernel for one GPU generation, and how it is launched: `fixed`, `per_item` and `block` are the grid's."""

    entry: str
    ptx: str
    threads: int
    shared_bytes: int
    fixed: int
    per_item: int
    block: int


class Kernels:
    """The kernels of a bundle for one SM."""

    def __init__(self, folder: Path, sm: int) -> None:
        path = folder / KERNELS_FILE
        entries = json.loads(path.read_text(encoding="utf-8"))["kernels"] if path.is_file() else []
        self._folder = folder
        self._entries: list[dict[str, Any]] = [entry for entry in entries if entry["sm"] == sm]

    def nodes(self) -> set[str]:
        """The kinds of nodes of which every kernel may be a plugin."""
        found = set()
        for node, (kernel, _) in NODES.items():
            entries = [entry for entry in self._entries if entry["kernel"] == kernel]
            if entries and all(entry["shared_bytes"] <= _SHARED_LIMIT for entry in entries):
                found.add(node)
        return found

    def find(self, node: str, dtype: str, **constants: int) -> Kernel:
        """The kernel of a node of these sizes.

        Args:
            dtype: as Triton names it: "fp16", "bf16", "fp32".

        Raises:
            NuwaxlError: the bundle has none.
        """
        kernel, arguments = NODES[node]
        for entry in self._entries:
            own = entry["constants"]
            if (
                entry["kernel"] == kernel
                and entry["arguments"][0]["type"] == f"*{dtype}"
                and all(own[name] == value for name, value in constants.items())
            ):
                return self._kernel(entry, arguments)
        sizes = ", ".join(f"{name} {value}" for name, value in constants.items())
        raise NuwaxlError(
            f"expected a kernel {kernel} for {dtype}, {sizes} in {self._folder / KERNELS_FILE}; found none; "
            "export the bundle again with --sm"
        )

    def _kernel(self, entry: dict[str, Any], arguments: Iterable[str]) -> Kernel:
        ptx = (self._folder / entry["files"]["ptx"]["file"]).read_text(encoding="utf-8")
        names = [argument["name"] for argument in entry["arguments"]]
        hidden = [f"hidden {i}" for i in range(entry["hidden_null_pointers"])]
        grid = entry["grid"]
        return Kernel(
            entry["entry"],
            with_parameters(ptx, entry["entry"], [*names, *hidden], set(arguments)),
            32 * entry["num_warps"],
            entry["shared_bytes"],
            grid["fixed"],
            grid["per_item"],
            grid["block"],
        )


def with_parameters(ptx: str, entry: str, names: list[str], kept: set[str]) -> str:
    """PTX whose entry has but some of its parameters: those that the code does not read are dropped.

    TensorRT passes a plugin's inputs, its scalars and its outputs. Triton's kernels have two pointers to scratch memory
    on top, and the convolution without injection has a scale and a shift that it does not read.

    Raises:
        NuwaxlError: the code reads a parameter that is to go, or has another number of them.
    """
    found = re.search(rf"(\.entry {re.escape(entry)}\(\n)(.*?)(\n\))", ptx, re.DOTALL)
    if found is None:
        raise NuwaxlError(f"expected the entry {entry} in a kernel's PTX; found none; export the bundle with --sm")
    parameters = [line.strip().rstrip(",") for line in found[2].split("\n")]
    if len(parameters) != len(names):
        raise NuwaxlError(
            f"expected {len(names)} parameters of the kernel {entry}; found {len(parameters)}; "
            "export the bundle again with --sm"
        )
    body = ptx[found.end() :]
    remaining = []
    for name, parameter in zip(names, parameters, strict=True):
        if name in kept:
            remaining.append(f"\t{parameter}")
        elif re.search(rf"\b{re.escape(parameter.split()[-1])}\b", body):
            raise NuwaxlError(f"expected the kernel {entry} not to read {name}; found that it does; give it to it")
    return _older(ptx[: found.end(1)] + ",\n".join(remaining) + ptx[found.start(3) :])


def _older(ptx: str) -> str:
    """PTX that says it is of CUDA 12.9 where it says a newer one. Triton names the newest version it knows, whatever
    the code needs, and a driver refuses a version newer than itself."""
    found = re.search(r"^\.version (\d+)\.(\d+)$", ptx, re.MULTILINE)
    if found is None or (int(found[1]), int(found[2])) <= _PTX_VERSION:
        return ptx
    return ptx[: found.start()] + f".version {_PTX_VERSION[0]}.{_PTX_VERSION[1]}" + ptx[found.end() :]


def nodes_of(graph: Path) -> set[str]:
    """The kinds of `nuwaxl` nodes in a graph."""
    import onnx

    model = onnx.load(graph, load_external_data=False)
    return {node.op_type for node in model.graph.node if node.domain == DOMAIN}


def with_plugins(graph: Path, nodes: set[str]) -> bytes:
    """The graph with these kinds of nodes as plugins of the namespace `nuwaxl`, without their bodies."""
    import onnx

    model = onnx.load(graph, load_external_data=False)
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type in nodes:
            given = {attribute.name for attribute in node.attribute}
            for name, value in (("plugin_namespace", DOMAIN), ("plugin_version", "1")):
                if name not in given:
                    node.attribute.append(onnx.helper.make_attribute(name, value))
    kept = [function for function in model.functions if function.domain != DOMAIN or function.name not in nodes]
    del model.functions[:]
    model.functions.extend(kept)
    return model.SerializeToString()
