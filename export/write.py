"""Writing of a bundle: all of it under its name, or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx
import torch

from nuwaxl.engine.bundle import write_manifest
from nuwaxl.engine.bundle_schema import (
    MANIFEST_FILE,
    MAX_GUIDANCE,
    MIN_LENGTH,
    TOKENIZER_FILE,
    Diffusion,
    Graph,
    PrecisionName,
    Sampler,
    TensorSpec,
)
from nuwaxl.errors import InputError, reason
from nuwaxl.export.compiled import kernel_requests, write_kernels
from nuwaxl.export.model import Model
from nuwaxl.export.onnx import save, to_onnx
from nuwaxl.export.parity import Parity, batches, check_parity
from nuwaxl.export.samples import GraphSource, graph_sources
from nuwaxl.export.weights import EXTERNAL_FROM
from nuwaxl.kernels.aot import Request, check_architectures

_PRODUCERS = ("nuwaxl", "torch", "onnx", "onnxscript", "onnxruntime")
_EXAMPLE_BATCH = 3
_DTYPES = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.UINT8: "uint8",
}
_SEED = 20_221  # of the random inputs of the parity gate


@dataclass(frozen=True)
class Written:
    """One graph that has passed the gate and is on disk."""

    name: str
    bytes: int
    parity: Parity
    seconds: float


def export_bundle(
    model: Model,
    out: Path,
    *,
    name: str,
    sampler: Sampler,
    decode_overlap: int = 0,
    precision: PrecisionName = "fp32",
    external_from: int = EXTERNAL_FROM,
    kernels_for: Sequence[int] = (),
    force: bool = False,
    files: Sequence[Path] = (),
    stage: Callable[[str], None] = lambda _: None,
    progress: Callable[[Written], None] = lambda _: None,
    finish: Callable[[Path], None] = lambda _: None,
) -> None:
    """Export every graph of `model`, compare it with torch, and write the bundle `out`, with copies of `files`.

    Args:
        external_from: bytes of a graph's weights from which on they lie in a file beside it.

    `stage` is called with what begins, `progress` with every graph that is done.
    `finish` is called with the folder of the finished bundle before it takes its name, and may add to it.

    With `kernels_for`, SM numbers of GPUs, step and decode call the kernels (export/functions.py), which are compiled
    into the bundle; graphs are of nodes that ONNX Runtime's CUDA provider has.

    Raises:
        InputError: `out` cannot be written, the sampler, the overlap or an SM number does not fit the model, or a
            weight not the precision.
        ParityError: a graph's answers are not torch's; nothing is written.
    """
    check_output(out, force)
    check_architectures(kernels_for)
    network = model.network(decode_overlap)
    config = model.config.diffusion
    if network.length < MIN_LENGTH:
        raise InputError(
            expected=f"a model of segments of at least {MIN_LENGTH} frames: a bundle renders trees",
            found=f"mtd.length = {network.length}",
            fix="train it further with longer segments",
        )
    if 2 * decode_overlap >= network.length:
        raise InputError(
            expected=f"a decode overlap below half of the {network.length} frames of a segment",
            found=str(decode_overlap),
            fix="give a smaller --decode-overlap",
        )
    if sampler.steps > config.train_steps:
        raise InputError(
            expected=f"at most {config.train_steps} sampler steps", found=str(sampler.steps), fix="give fewer --steps"
        )
    if not 0 <= sampler.guidance <= MAX_GUIDANCE:
        raise InputError(
            expected=f"a guidance scale from 0 to {MAX_GUIDANCE:g}",
            found=f"{sampler.guidance:g}",
            fix="give another --guidance",
        )
    with _whole_or_nothing(out) as folder:
        graphs = {}
        asked: set[Request] = set()
        for source in graph_sources(model, precision, kernels=bool(kernels_for)):
            start = time.perf_counter()

            def of_graph(what: str, name: str = source.name) -> None:
                stage(f"{name}: {what}")

            graphs[source.name] = graph = _write_graph(
                source, folder, external_from, for_gpus=bool(kernels_for), stage=of_graph
            )
            parity = check_parity(source, folder / graph.file, _SEED, precision, batches(network), of_graph)
            size = sum((folder / file).stat().st_size for file in (graph.file, graph.data) if file is not None)
            if kernels_for:
                of_graph("finding its kernels")
                asked |= kernel_requests([source])
            progress(Written(source.name, size, parity, time.perf_counter() - start))
        if kernels_for:
            stage("compiling kernels")
            write_kernels(folder, asked, kernels_for)
        stage("writing the manifest")
        (folder / TOKENIZER_FILE).write_bytes(model.tokenizer)
        for path in files:
            shutil.copyfile(path, folder / path.name)
        write_manifest(
            folder,
            name=name,
            producer={package: version(package) for package in _PRODUCERS},
            precision=precision,
            network=network,
            diffusion=Diffusion(
                config.train_steps, config.schedule, config.beta_start, config.beta_end, config.prediction
            ),
            sampler=sampler,
            graphs=graphs,
        )
        finish(folder)


def check_output(out: Path, force: bool) -> None:
    """Refuse an output directory that cannot be written, or that holds something.

    Raises:
        InputError: it is a file, or it is not empty and `force` is not given, or with `force` holds no bundle.
    """
    # os.path rather than Path's methods: those raise where a name is too long.
    if os.path.exists(out) and not os.path.isdir(out):
        raise InputError(expected=f"a directory to write at {out}", found="a file", fix="give another OUT_DIR")
    if os.path.isdir(out) and any(out.iterdir()):
        if not force:
            raise InputError(
                expected=f"an empty or absent directory {out}", found="files in it", fix="give another, or --force"
            )
        if not (out / MANIFEST_FILE).is_file():
            raise InputError(
                expected=f"a bundle at {out} for --force to replace",
                found=f"a directory without {MANIFEST_FILE}",
                fix="give another OUT_DIR",
            )


def _write_graph(
    source: GraphSource,
    folder: Path,
    external_from: int,
    *,
    for_gpus: bool = False,
    stage: Callable[[str], None] = lambda _: None,
) -> Graph:
    with torch.no_grad():
        inputs = source.sample(_EXAMPLE_BATCH, torch.Generator().manual_seed(_SEED)).inputs
    file, data = f"{source.name}.onnx", f"{source.name}.data"
    model = to_onnx(
        source.module,
        inputs,
        source.outputs,
        for_gpus=for_gpus,
        data=folder / data,
        external_from=external_from,
        stage=stage,
    )
    stage("writing and checking its file")
    save(model, folder / file)
    has_data = (folder / data).is_file()
    return Graph(file, data if has_data else None, _specs(model.graph.input), _specs(model.graph.output))


def _specs(values: Sequence[onnx.ValueInfoProto]) -> tuple[TensorSpec, ...]:
    """What the manifest says of a graph's inputs or outputs."""
    return tuple(
        TensorSpec(
            value.name,
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
            _DTYPES[value.type.tensor_type.elem_type],
        )
        for value in values
    )


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    """A directory beside `out` that takes its name once all of the body is done, and vanishes if it fails."""
    target = out.resolve()  # of "." as well, and of a symbolic link, which stays one
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(
            expected=f"a writable place for {out}", found=reason(error), fix="give another OUT_DIR"
        ) from error
    partial, old = work / "new", work / "old"
    try:
        partial.mkdir()
        yield partial
        if target.exists():
            target.rename(old)
        partial.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
