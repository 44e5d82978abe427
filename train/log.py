"""The log of a training: log.jsonl, and the same figures for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Self

from nuwaxl.errors import InputError
from nuwaxl.files import write_file


class TrainingLog:
    """Appends to `out`/log.jsonl, and to `out`/tensorboard if asked to.

    Lines of steps after `start`, which a resumed run will do again, are dropped. Raises InputError if TensorBoard is
    asked for and not installed.
    """

    def __init__(self, out: Path, start: int, tensorboard: bool) -> None:
        self._writer = _writer(out / "tensorboard", start) if tensorboard else None
        path = out / "log.jsonl"
        _forget_after(path, start)
        self._file = path.open("a", encoding="utf-8")

    def write(self, line: dict[str, float]) -> None:
        """`line` holds `step` and the figures after it."""
        rounded = {name: value if name == "step" else float(f"{value:.6g}") for name, value in line.items()}
        self._file.write(json.dumps(rounded) + "\n")
        self._file.flush()
        if self._writer is not None:
            step = int(line["step"])
            for name, value in rounded.items():
                if name != "step":
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def check_tensorboard() -> None:
    """Raise InputError if TensorBoard's writer is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise InputError(
            expected="the package tensorboard, for [run] tensorboard = true",
            found=str(error),
            fix="install it by pip install 'nuwaxl[train]', or set tensorboard = false",
        ) from error


def _writer(folder: Path, start: int):  # type: ignore[no-untyped-def]  # the type is TensorBoard's, imported late
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    # TensorBoard forgets what was written of the steps from `purge_step` on.
    return SummaryWriter(folder, purge_step=start + 1)


def _forget_after(log: Path, step: int) -> None:
    if log.exists():
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
        # A last line without its end is what a kill or a full disk left of it.
        kept = "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step)
        write_file(log, kept.encode())
