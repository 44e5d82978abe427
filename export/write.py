"""Writing of a bundle: all of it under its name, or nothing."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from nuwaxl.engine.bundle import write_manifest
from nuwaxl.engine.bundle_schema import MANIFEST_FILE, TOKENIZER_FILE, Diffusion, Graph, Sampler, TensorSpec
from nuwaxl.errors import InputError
from nuwaxl.export.model import Model
from nuwaxl.export.onnx import BATCH, serialized, to_onnx
from nuwaxl.export.parity import Parity, check_parity
from nuwaxl.export.samples import GraphSource, Sample, Tensors, graph_sources

_PRODUCERS = ("nuwaxl", "torch", "onnx", "onnxscript", "onnxruntime")
_EXAMPLE_BATCH = 3
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
    force: bool = False,
    files: Sequence[Path] = (),
    progress: Callable[[Written], None] = lambda _: None,
) -> None:
    """Export every graph of `model`, compare it with torch, and write the bundle `out`, with copies of `files`.

    Raises:
        InputError: `out` cannot be written, or the sampler or the overlap does not fit the model.
        ParityError: a graph's answers are not torch's; nothing is written.
    """
    check_output(out, force)
    network = model.network(decode_overlap)
    config = model.config.diffusion
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
    with _whole_or_nothing(out) as folder:
        graphs = {}
        for source in graph_sources(model):
            graphs[source.name], written = _write_graph(source, folder)
            progress(written)
        (folder / TOKENIZER_FILE).write_bytes(model.tokenizer)
        for path in files:
            shutil.copyfile(path, folder / path.name)
        write_manifest(
            folder,
            name=name,
            producer={package: version(package) for package in _PRODUCERS},
            network=network,
            diffusion=Diffusion(
                config.train_steps, config.schedule, config.beta_start, config.beta_end, config.prediction
            ),
            sampler=sampler,
            graphs=graphs,
        )


def check_output(out: Path, force: bool) -> None:
    """Refuse an output directory that cannot be written, or that holds something.

    Raises:
        InputError: it is a file, or it is not empty and `force` is not given, or with `force` holds no bundle.
    """
    if out.exists() and not out.is_dir():
        raise InputError(expected=f"a directory to write at {out}", found="a file", fix="give another OUT_DIR")
    if out.is_dir() and any(out.iterdir()):
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


def _write_graph(source: GraphSource, folder: Path) -> tuple[Graph, Written]:
    start = time.perf_counter()
    with torch.no_grad():
        sample = source.sample(_EXAMPLE_BATCH, torch.Generator().manual_seed(_SEED))
    content = serialized(to_onnx(source.module, sample.inputs, list(sample.outputs)))
    parity = check_parity(source, content, _SEED)
    file = f"{source.name}.onnx"
    (folder / file).write_bytes(content)
    return _graph(file, sample), Written(source.name, len(content), parity, time.perf_counter() - start)


def _graph(file: str, sample: Sample) -> Graph:
    def specs(tensors: Tensors) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(name, (BATCH, *tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in tensors.items()
        )

    return Graph(file, specs(sample.inputs), specs(sample.outputs))


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    """A directory beside `out` that takes its name once all of the body is done, and vanishes if it fails."""
    target = out.resolve()  # of "." as well, and of a symbolic link, which stays one
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(
            expected=f"a writable place for {out}", found=error.strerror or str(error), fix="give another OUT_DIR"
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
