"""torch modules to ONNX: one batch dimension, and the same bytes whenever and wherever it is done."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from nuwaxl.export import functions, translations
from nuwaxl.export.weights import EXTERNAL_FROM, halve, store, take_out, weight_bytes

OPSET = 20
GPU_OPSET = 23  # the first with attention as one node; of those before, 22 is the first with bfloat16 convolutions
BATCH = "batch"


def to_onnx(
    module: nn.Module,
    inputs: dict[str, Tensor],
    outputs: Sequence[str],
    *,
    for_gpus: bool = False,
    data: Path | None = None,
    external_from: int = EXTERNAL_FROM,
    stage: Callable[[str], None] = lambda _: None,
) -> onnx.ModelProto:
    """Export `module`, called with `inputs` in their order; the first axis of every tensor is the batch.

    The examples in `inputs` must have a batch of at least 2, since the exporter takes a size of 1 for a constant.
    Graphs `for_gpus` are of nodes that GPUs' runtimes have (translations.py), as all in bfloat16 are: CPUs run none.
    With `data`, a graph of `external_from` bytes of weights or more has the larger ones in that file instead, which
    must lie beside the graph's own (weights.py); `save` checks such a graph when it is written.
    `stage` is called with what begins.
    """
    types = {parameter.dtype for parameter in module.parameters()}
    for_gpus = for_gpus or torch.bfloat16 in types
    table = functions.translations()
    if for_gpus:
        table.update(translations.for_gpus())
    elif torch.float16 in types:
        table.update(translations.for_lower_precision())
    else:
        table.update(translations.for_cpus())
    batch = {0: torch.export.Dim(BATCH)}
    with _quiet(), torch.no_grad():
        stage("tracing")
        # Traced here, since torch.onnx.export itself answers a batch it cannot keep dynamic with a fixed one.
        traced = torch.export.export(
            module.eval(),
            tuple(inputs.values()),
            dynamic_shapes=_shapes(module, len(inputs), batch),
        )
        stage("translating to ONNX, and optimizing")
        program = torch.onnx.export(
            traced,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=GPU_OPSET if for_gpus else OPSET,
            dynamo=True,
            verbose=False,
            custom_translation_table=table,
        )
    assert program is not None
    stage("writing its weights")
    taken = {}
    if data is not None and weight_bytes(program.model) >= external_from:
        taken = take_out(program.model, data.name)
    model = program.model_proto
    functions.add_bodies(model)
    _strip(model)
    halve(model.graph)
    if data is None:
        onnx.checker.check_model(model, full_check=True)
    elif taken:
        store(model.graph, taken, data)
    return model


def serialized(model: onnx.ModelProto) -> bytes:
    """The bytes of a bundle's graph file."""
    return model.SerializeToString(deterministic=True)


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a graph file, and check it together with its file of data, if it has one."""
    path.write_bytes(serialized(model))
    onnx.checker.check_model(path, full_check=True)


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
