"""One piece of the benchmark in a process of its own: `python -m nuwaxl.bench.gpu.piece JSON`, called by `cli`."""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nuwaxl.bench.gpu import kernels, opponents, ours, parity, tests
from nuwaxl.bench.gpu.model import workload
from nuwaxl.engine.request import DEFAULT_MAX_BATCH
from nuwaxl.errors import NuwaxlError

# Segments in a batch of the opponents: the largest of torch.compile, and those that are timed without it.
_COMPILED, _EAGER = 8, [1, 8, 16]
_TYPE_ON_CPU = torch.float32


@dataclass(frozen=True)
class Piece:
    """What to measure: `kind` is tests, kernels, parity, ours, eager or compile.

    Attributes:
        pixels: of the end-to-end pieces.
        devices: that the engine renders on, of ours.
        mode: of torch.compile.
        max_batch: segments in a step of ours, at most.
        most_s: seconds after which it is stopped.
        going_on: whether there are rows already, of a process that lost the GPU.
    """

    kind: str
    device: str
    tiny: bool
    folder: str
    most_s: float
    pixels: int = 0
    devices: str = ""
    mode: str = ""
    bundles: tuple[str, ...] = ()
    max_batch: int = DEFAULT_MAX_BATCH
    going_on: bool = False

    @property
    def name(self) -> str:
        """Of its entry in the document."""
        if self.kind in ("tests", "kernels", "parity"):
            return self.kind
        options = self.devices.replace(":", "-").replace("/", "-") or self.mode
        return "-".join(filter(None, (self.kind, options, str(self.pixels))))

    @property
    def result(self) -> Path:
        """Where it leaves what it found so far."""
        return Path(self.folder) / f"piece-{self.name}.json"

    def command(self) -> list[str]:
        """That runs it."""
        return [sys.executable, "-m", "nuwaxl.bench.gpu.piece", json.dumps(asdict(self))]


def main(text: str) -> int:
    """Measure, and write `result` whenever there is news."""
    table = json.loads(text)
    piece = Piece(**{**table, "bundles": tuple(table["bundles"])})
    folder, deadline = Path(piece.folder), time.monotonic() + piece.most_s
    on_gpu = piece.device != "cpu"

    def news(figures: dict[str, Any]) -> None:
        name = torch.cuda.get_device_name(piece.device) if on_gpu else "cpu"
        _write(piece.result, {"figures": {"device_name": name, **figures}})

    if piece.kind == "tests":
        found = tests.measure(folder, piece.most_s)
        _write(piece.result, found)
        if found["figures"]["exit_status"] not in tests.WHOLE:
            raise NuwaxlError(
                f"expected pytest to run all GPU tests; found that it ended; see {found['figures']['log']}"
            )
    elif piece.kind == "kernels":
        done = json.loads(piece.result.read_text(encoding="utf-8"))["rows"] if piece.going_on else []
        found = kernels.measure(
            piece.device, tiny=piece.tiny, news=lambda found: _write(piece.result, found), done=done
        )
        if found["figures"]["lost"]:  # what becomes of this process finds a GPU that works, and fewer kernels to try
            os.execv(sys.executable, replace(piece, going_on=True).command())
    elif piece.kind == "parity":
        news(parity.measure(workload(piece.pixels, tiny=piece.tiny), piece.device))
    elif piece.kind == "ours":
        bundles = [Path(bundle) for bundle in piece.bundles]
        work = workload(piece.pixels, tiny=piece.tiny)
        ours.measure(work, piece.devices, folder, deadline, news, bundles, piece.max_batch)
    else:
        work, mode = workload(piece.pixels, tiny=piece.tiny), piece.mode or "eager"
        sizes = opponents.sizes_of(work, 2 if piece.tiny else _COMPILED)
        if piece.kind == "eager" and not piece.tiny:
            sizes = _EAGER
        dtype = torch.bfloat16 if on_gpu else _TYPE_ON_CPU
        opponents.measure(work, torch.device(piece.device), dtype, mode, sizes, folder, news)
    return 0


def _write(path: Path, result: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result), encoding="utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
