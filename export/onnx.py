"""torch modules to ONNX: one batch dimension, and the same bytes whenever and wherever it is done."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn

OPSET = 20
BATCH = "batch"


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
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
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
