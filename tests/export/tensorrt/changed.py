"""Bundles of which something was changed by hand, with the manifest that goes with it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx


def change_graph(folder: Path, change: Callable[[Any], None], graph: str = "text") -> None:
    """Change a graph of a bundle."""
    path = folder / f"{graph}.onnx"
    model = onnx.load(path)
    change(model)
    put(folder, path.name, model.SerializeToString())


def call_a_kernel(model: Any) -> None:
    """Add a node that is one of the temporal kernels; nothing runs the graph."""
    model.graph.node.append(onnx.helper.make_node("TemporalAttention", ["a"], ["b"], domain="nuwaxl"))


def add_kernels(folder: Path, name: str, sm: int = 90) -> None:
    """Give a bundle a kernel for such nodes, small enough to be a plugin."""
    entry = {"kernel": "temporal_attention", "sm": sm, "shared_bytes": 16384, "entry": name}
    put(folder, "kernels.json", json.dumps({"kernels": [entry]}).encode())


def put(folder: Path, name: str, content: bytes) -> None:
    """Write a file of the bundle, new or not."""
    (folder / name).write_bytes(content)
    table = json.loads((folder / "manifest.json").read_text())
    table["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(table))
