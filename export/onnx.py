"""torch modules to ONNX: one batch dimension, and the same bytes whenever and wherever it is done."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from nuwaxl.export.functions import add_bodies, translations

OPSET = 20
BATCH = "batch"
_WORTH_HALVING = 256  # values; below, the cast node is longer than what it saves


def to_onnx(
    module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str], opset: int = OPSET
) -> onnx.ModelProto:
    """Export `module`, called with `inputs` in their order; the first axis of every tensor is the batch.

    The examples in `inputs` must have a batch of at least 2, since the exporter takes a size of 1 for a constant.
    """
    batch = {0: torch.export.Dim(BATCH)}
    with _quiet(), torch.no_grad():
        # Traced here, since torch.onnx.export itself answers a batch it cannot keep dynamic with a fixed one.
        traced = torch.export.export(
            module.eval(),
            tuple(inputs.values()),
            dynamic_shapes=_shapes(module, len(inputs), batch),
        )
        program = torch.onnx.export(
            traced,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=opset,
            dynamo=True,
            verbose=False,
            custom_translation_table=translations(),
        )
    assert program is not None
    model = program.model_proto
    add_bodies(model)
    _strip(model)
    _halve(model.graph)
    onnx.checker.check_model(model, full_check=True)
    return model


def serialized(model: onnx.ModelProto) -> bytes:
    """The bytes of a bundle's graph file."""
    return model.SerializeToString(deterministic=True)


def _shapes(module: nn.Module, count: int, batch: dict[int, object]) -> tuple[object, ...]:
    """Dynamic shapes in the structure of forward's parameters: *state takes its own tuple."""
    names = module.forward.__code__.co_varnames[1 : module.forward.__code__.co_argcount]
    rest = count - len(names)
    return (*(batch for _ in names), *([tuple(batch for _ in range(rest))] if rest else []))


def _strip(model: onnx.ModelProto) -> None:
    """Drop what records the machine or the source the graph was made from: stack traces, paths, doc strings."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    graph.name = "nuwaxl"
    # Shapes between the ends are inferred again by whoever reads the graph; the exporter's symbols are its own.
    del graph.value_info[:]
    for tensor in (*graph.input, *graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = BATCH


def _halve(graph: onnx.GraphProto) -> None:
    """Store weights that are float16 values as float16, and cast them where the graph begins: nothing is rounded.

    Weights trained or published in float16 are such values. A runtime folds the casts when it loads the graph.
    """
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or math.prod(tensor.dims) < _WORTH_HALVING:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.float16"))
        casts.append(
            onnx.helper.make_node("Cast", [tensor.name], [name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT)
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about itself from the user's terminal; its errors are exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
