"""python -m nuwaxl.bench.gpu: everything that a GPU must show, by one command (`make gpu`)."""

import argparse
import importlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nuwaxl import __version__
from nuwaxl.bench.gpu import report
from nuwaxl.bench.gpu.gates import MODES, gates
from nuwaxl.bench.gpu.piece import Piece
from nuwaxl.cli import Parser, positive_int, run
from nuwaxl.engine.request import DEFAULT_MAX_BATCH
from nuwaxl.errors import InputError, NuwaxlError

PROG = "python -m nuwaxl.bench.gpu"
PARTS = ("tests", "kernels", "parity", "ours", "eager", "compile")
# Most that a piece takes, in seconds; ours, eager and compile are several.
_MOST_S = {"tests": 240, "kernels": 90, "parity": 180, "ours": 330, "eager": 90, "compile": 420}
_LEAST_S = 15  # a piece that has less time left is not begun
NOT_BEGUN = "no time left"
_TINY_PIXELS = (8,)
_UNLIMITED = ("max-autotune",)  # modes of torch.compile that try kernels for many minutes

_DESCRIPTION = """\
Run the GPU tests, measure the kernels, and render 1024 frames with the sd15 network (random weights, bfloat16) against
torch eager and torch.compile, on the first GPU of this machine. Writes gpu.json and gpu.md as it goes, with every gate
and by how much it is missed. Parts run one by one add to the files of those before."""

_EPILOG = """\
exit status: 0 all was measured and no gate is missed, 1 a gate is missed or a part failed or had no time left,
2 bad arguments or no GPU, 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = _parser().parse_args(argv)
    return run(PROG, lambda: _measure(arguments))


def _parser() -> Parser:
    parser = Parser(prog=PROG, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--parts", type=_parts, default=list(PARTS), metavar="LIST", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="DIR", help="for the files (default: out)")
    parser.add_argument(
        "--budget", type=float, default=3600.0, metavar="S", help="seconds for all of it (default: 3600)"
    )
    parser.add_argument("--sizes", type=_sizes, default=[256, 128], metavar="LIST", help="pixels (default: 256,128)")
    parser.add_argument(
        "--devices",
        action="append",
        metavar="DEVICE",
        help="a device of the engine to render on; may be repeated (default: torch:cuda:0, then "
        "torch:cuda:0/eager); others than torch's need a --bundle",
    )
    parser.add_argument("--bundle", type=Path, action="append", default=[], metavar="DIR", help="for such devices")
    parser.add_argument(
        "--compile-mode",
        action="append",
        metavar="MODE",
        help="torch.compile's, for the opponent; may be repeated (default: reduce-overhead, then max-autotune)",
    )
    parser.add_argument(
        "--max-batch", type=positive_int, default=DEFAULT_MAX_BATCH, metavar="N", help="segments in a step of ours"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: all of it, tiny, as a test")
    return parser


def _measure(arguments: argparse.Namespace) -> None:
    tiny = arguments.device == "cpu"
    machine = _machine(tiny)
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    document = report.read(folder)
    before = document.get("machine", machine)["device"]
    if before != machine["device"]:
        raise InputError(
            expected=f"figures of {machine['device']} in {folder / report.JSON_FILE}",
            found=before,
            fix="name another folder with --out, or move this one",
        )
    sizes = list(_TINY_PIXELS) if tiny else arguments.sizes
    document |= {"tiny": tiny, "sizes": sizes, "machine": machine, "command": " ".join(sys.argv)}
    deadline = time.monotonic() + arguments.budget
    failed = []
    for piece in _pieces(arguments, sizes, tiny):
        entry = _run(piece, deadline)
        document["pieces"][piece.name] = _latest(document["pieces"].get(piece.name), entry)
        document["gates"] = [gate.to_json() for gate in gates(document["pieces"], sizes)]
        report.write(folder, document)
        print(f"{piece.name}: {entry['state']}, {entry['seconds']:.0f} s", flush=True)
        if entry["state"] != "done":
            failed.append(piece.name)
    print((folder / report.TABLE_FILE).read_text(encoding="utf-8").partition("\n## ")[0])
    missed = [gate["name"] for gate in document["gates"] if gate["passed"] is False]
    if failed or (missed and not tiny):
        raise _Missed(f"expected every part done and every gate passed; found not done {failed}, missed {missed}")


class _Missed(NuwaxlError):
    """Exit status 1."""


def _machine(tiny: bool) -> dict[str, str]:
    """What this runs on.

    Raises:
        InputError: no GPU that torch can use.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise InputError(expected="the package torch", found=str(error), fix="install its CUDA build") from error
    found = {"nuwaxl": __version__, "python": platform.python_version(), "torch": torch.__version__}
    found |= {"numpy": np.__version__, "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    for name in ("triton", "onnxruntime"):
        try:
            found[name] = importlib.import_module(name).__version__
        except ImportError:
            found[name] = "none"
    if tiny:
        return {"device": "cpu, tiny sizes: the figures mean nothing", **found}
    if not torch.cuda.is_available():
        raise InputError(
            expected="a GPU that torch can use",
            found=f"none by torch {torch.__version__}",
            fix="run make gpu on a machine that has one, or try the code with --device cpu",
        )
    properties = torch.cuda.get_device_properties(0)
    device = {"device": properties.name, "memory_gib": f"{properties.total_memory / 2**30:.0f}"}
    return {**device, "sm": f"{properties.major}{properties.minor}", "cuda": str(torch.version.cuda), **found}


def _pieces(arguments: argparse.Namespace, sizes: Sequence[int], tiny: bool) -> list[Piece]:
    """In the order of what matters most, the larger size first; at last what takes all the time that is left."""
    device = "cpu" if tiny else "cuda:0"
    ours = arguments.devices or (["torch:cpu"] if tiny else ["torch:cuda:0", "torch:cuda:0/eager"])

    def piece(kind: str, **fields: Any) -> Piece:
        # torch keeps what it found when it is stopped, and goes on there the next time.
        most_s = arguments.budget if fields.get("mode") in _UNLIMITED else _MOST_S[kind]
        return Piece(kind, device, tiny, str(arguments.out), most_s, **fields)

    ours_too = {"bundles": tuple(str(path) for path in arguments.bundle), "max_batch": arguments.max_batch}
    first_mode, *other_modes = ["default"] if tiny else arguments.compile_mode or MODES
    pieces = [piece(kind) for kind in ("tests", "kernels")]
    pieces.append(piece("parity", pixels=sizes[0]))
    for size in sizes:
        pieces.append(piece("ours", pixels=size, devices=ours[0], **ours_too))
        pieces.append(piece("compile", pixels=size, mode=first_mode))
        pieces.append(piece("eager", pixels=size))
    pieces += [piece("ours", pixels=size, devices=other, **ours_too) for other in ours[1:] for size in sizes]
    pieces += [piece("compile", pixels=size, mode=mode) for mode in other_modes for size in sizes]
    return [each for each in pieces if each.kind in arguments.parts]


def _latest(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """What stands of an earlier run and of this one: this one's, unless it did not come as far."""
    if before is None or now["state"] == "done":
        return now
    if before["state"] != "done" and len(before.get("figures", {})) <= len(now.get("figures", {})):
        return now
    return {**before, "error": f"not again by a later run: {now['state']} {now.get('error', '')}".strip()}


def _run(piece: Piece, deadline: float) -> dict[str, Any]:
    """The piece's entry in the document; what it wrote before it failed or was stopped counts."""
    began = time.monotonic()
    most_s = min(piece.most_s, deadline - began)
    if most_s < _LEAST_S:
        return {"state": NOT_BEGUN, "seconds": 0.0}
    piece = Piece(**{**piece.__dict__, "most_s": most_s})
    piece.result.unlink(missing_ok=True)
    log = piece.result.with_suffix(".log")
    state, error = "done", ""
    with log.open("w", encoding="utf-8") as out:
        # A group of its own: torch's compiling processes end with it.
        child = subprocess.Popen(
            piece.command(), env=_environment(piece), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if child.wait(timeout=most_s) != 0:
                state, error = "failed", _last_line(log)
        except subprocess.TimeoutExpired:
            state, error = "stopped", f"after {most_s:.0f} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    found = report.read_piece(piece.result)
    return {"state": state, "seconds": time.monotonic() - began, "error": error, **found}


def _environment(piece: Piece) -> dict[str, str]:
    """Of a piece; of torch.compile's, torch's own ptxas for all of it, where torch brings one.

    The processes that compile candidates for max-autotune take that, and the one that measures them Triton's, whose
    cache goes by the version of ptxas: what they compiled it does not find, and compiles it again, one by one.
    """
    if piece.kind != "compile":
        return dict(os.environ)
    ptxas = Path(importlib.import_module("torch").__file__ or "").parent / "bin" / "ptxas"
    return {**({"TRITON_PTXAS_PATH": str(ptxas)} if os.access(ptxas, os.X_OK) else {}), **os.environ}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "no output"


def _parts(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected parts among {', '.join(PARTS)}; found {', '.join(unknown)}")
    return text.split(",")


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or any(size < 64 or size % 64 for size in sizes):
        raise argparse.ArgumentTypeError(f"expected multiples of 64 pixels, with commas; found {text!r}")
    return sizes
