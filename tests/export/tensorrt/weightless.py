"""The graphs of the preset sd15 at their real size, without its 5 GB of weights.

    python tests/export/tensorrt/weightless.py step FOLDER

The network is on torch's device "meta", where tensors have shapes and no values. In the graph every weight is a piece
of a file of zeros beside it, which is sparse: gigabytes long, and empty on the disk.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import onnx_ir as ir
import torch

from nuwaxl.export.functions import add_bodies, translations
from nuwaxl.export.model import Model
from nuwaxl.export.onnx import OPSET, _quiet, _shapes, _strip, serialized
from nuwaxl.export.samples import graph_sources
from nuwaxl.export.translations import for_cpus
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.networks.text import CLIPText
from nuwaxl.train.networks.tklvae import TKLVAE
from nuwaxl.train.presets import SD15

ZEROS = "zeros.bin"
_KEPT = 1024  # bytes; smaller constants are shapes and factors, and stay in the graph
_PAGE = 4096


def weightless(name: str) -> onnx.ModelProto:
    """One graph of sd15, its weights in the file ZEROS."""
    with torch.device("meta"):
        networks = (CLIPText(SD15.text), MTD(SD15.mtd), TKLVAE(SD15.tklvae))
    for network in networks:
        network.eval().requires_grad_(False)
    model = Model(SD15, *networks, tokenizer=b"")
    source = next(source for source in graph_sources(model) if source.name == name)
    with torch.device("meta"), torch.no_grad(), _without_generators():
        sample = source.sample(3, torch.Generator())
    batch = {0: torch.export.Dim("batch")}
    with _quiet(), torch.no_grad(), torch.device("meta"):
        traced = torch.export.export(
            source.module,
            tuple(sample.inputs.values()),
            dynamic_shapes=_shapes(source.module, len(sample.inputs), batch),
        )
        program = torch.onnx.export(
            traced,
            input_names=list(sample.inputs),
            output_names=list(source.outputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            optimize=False,
            custom_translation_table={**translations(), **for_cpus()},
        )
        # Twice: the optimiser reads weights, and makes new ones of them.
        _to_zeros(program.model)
        program.optimize()
        _to_zeros(program.model)
        result = ir.serde.serialize_model(program.model)
    add_bodies(result)
    _strip(result)
    _place(result)
    return result


def write_zeros(model: onnx.ModelProto, folder: Path) -> Path:
    """The file that a graph's weights are in."""
    ends = [int(entry["offset"]) + int(entry["length"]) for entry in map(_external, model.graph.initializer) if entry]
    with (folder / ZEROS).open("wb") as file:
        file.truncate(max(ends, default=0))
    return folder / ZEROS


def _to_zeros(model: ir.Model) -> None:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        assert tensor is not None
        raw = getattr(tensor, "raw", None)
        if tensor.nbytes > _KEPT or (isinstance(raw, torch.Tensor) and raw.is_meta):
            value.const_value = ir.ExternalTensor(
                ZEROS, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=value.name or "", base_dir=_scratch()
            )


def _place(model: onnx.ModelProto) -> None:
    """Give every weight a piece of the file for itself: TensorRT takes two at one place for the same."""
    end = 0
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "offset":
                entry.value = str(end)
        if external := _external(tensor):
            end += -(-int(external["length"]) // _PAGE) * _PAGE


def _external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _scratch() -> str:
    """A folder with zeros enough for the largest weight, for the optimiser to read."""
    import tempfile

    folder = Path(tempfile.gettempdir()) / "nuwaxl-weightless"
    folder.mkdir(exist_ok=True)
    with (folder / ZEROS).open("ab") as file:
        file.truncate(2**30)
    return str(folder)


def _without_generators() -> ExitStack:
    """Random tensors need no generator here, and "meta" has none."""
    stack = ExitStack()
    for name in ("randn", "rand", "randint"):
        function = getattr(torch, name)

        def drawn(*arguments: Any, function: Any = function, generator: Any = None, **keywords: Any) -> Any:
            return function(*arguments, **keywords)

        stack.enter_context(mock.patch.object(torch, name, drawn))
    return stack


if __name__ == "__main__":
    made = weightless(sys.argv[1])
    (Path(sys.argv[2]) / f"{sys.argv[1]}.onnx").write_bytes(serialized(made))
