"""Where the command-line tools start: Ctrl-C is taken care of before anything that takes long to import."""

import sys
from importlib import import_module


def train() -> int:
    """nuwaxl-train."""
    return _start("nuwaxl-train", "nuwaxl.train.cli")


def export() -> int:
    """nuwaxl-export."""
    return _start("nuwaxl-export", "nuwaxl.export.cli")


def render() -> int:
    """nuwaxl-render."""
    return _start("nuwaxl-render", "nuwaxl.engine.cli")


def bench() -> int:
    """nuwaxl-bench."""
    return _start("nuwaxl-bench", "nuwaxl.bench.cli")


def _start(prog: str, module: str) -> int:
    try:
        return int(import_module(module).main())
    except KeyboardInterrupt:  # main() sees to those that come later
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
