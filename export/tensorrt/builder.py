"""Builds a plan in a process of its own: it can be killed at any moment, an abort in TensorRT ends nothing else, and
its memory is counted and given back.

The parent sends the request and gets lines of JSON: {"phase", "fraction"} again and again, then {"seconds",
"peak_bytes"} or {"error", "kind"}. The child ends when its parent does: it waits for the end of its input.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nuwaxl.engine.bundle_schema import TensorSpec
from nuwaxl.errors import InputError
from nuwaxl.export.tensorrt.build import BuildError, Request, build

_CHILD = "nuwaxl.export.tensorrt.builder"
_REPORT_S = 0.2  # between two reports


@dataclass(frozen=True)
class Built:
    """What a build took."""

    seconds: float
    peak_bytes: int


def build_apart(
    request: Request, out: Path, progress: Callable[[str, float], None], command: list[str] | None = None
) -> Built:
    """Build a plan into the file `out`, in a child process. Whatever ends this early ends the child at once, and leaves
    no file.

    Args:
        progress: called with the phase and the fraction done.
        command: starts the child; for tests.

    Raises:
        BuildError: TensorRT cannot read or build the graph, or the child died.
        InputError: TensorRT is not installed, or the graph is not the manifest's.
    """
    child = subprocess.Popen(
        command or [sys.executable, "-m", _CHILD, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Ctrl-C in a terminal goes to this process alone, which then kills the child.
        start_new_session=True,
    )
    stdin, stdout, stderr = child.stdin, child.stdout, child.stderr
    assert stdin is not None
    assert stdout is not None
    assert stderr is not None
    complaints: list[bytes] = []
    reader = threading.Thread(target=lambda: complaints.append(stderr.read()), daemon=True)
    reader.start()
    try:
        stdin.write(json.dumps(asdict(request), default=str).encode() + b"\n")
        stdin.flush()
        result: dict[str, Any] | None = None
        for line in stdout:
            message = json.loads(line)
            if "phase" in message:
                progress(message["phase"], message["fraction"])
            else:
                result = message
        status = child.wait()
        reader.join()
        if result is None:
            detail = b"".join(complaints).decode(errors="replace").strip().splitlines()
            raise BuildError(
                f"{request.graph.name}: {request.runtime}'s process ended with status {status}"
                f"{': ' + detail[-1] if detail else ''}"
            )
        if result.get("kind") == "input":
            raise InputError(**result["error"])
        if "error" in result:
            raise BuildError(result["error"])
        return Built(result["seconds"], result["peak_bytes"])
    except BaseException:
        child.kill()
        child.wait()
        out.unlink(missing_ok=True)
        raise
    finally:
        for pipe in (stdin, stdout, stderr):
            with suppress(BrokenPipeError):
                pipe.close()


def _child(out: Path) -> None:
    """The child: a request on its input, reports on its output."""
    request = _request(json.loads(sys.stdin.buffer.readline()))
    # Libraries print what they like; only reports may go to the parent.
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def end_with_parent() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()

    def say(**message: Any) -> None:
        print(json.dumps(message), file=reports, flush=True)

    last = 0.0

    def report(phase: str, fraction: float) -> bool:
        nonlocal last
        now = time.monotonic()
        if now - last >= _REPORT_S:
            last = now
            say(phase=phase, fraction=fraction)
        return True

    started = time.monotonic()
    try:
        out.write_bytes(build(request, report))
    except InputError as error:
        say(kind="input", error={"expected": error.expected, "found": error.found, "fix": error.fix})
    except BuildError as error:
        say(kind="build", error=str(error))
    except OSError as error:
        say(kind="build", error=f"{error.filename or out}: {error.strerror or error}")
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        say(seconds=time.monotonic() - started, peak_bytes=peak)
    reports.close()
    # TensorRT's teardown has nothing to add.
    os._exit(0)


def _request(values: dict[str, Any]) -> Request:
    """The request of its JSON values."""

    def path(name: str) -> Path | None:
        return None if values[name] is None else Path(values[name])

    def specs(name: str) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(spec["name"], tuple(spec["shape"]), spec["dtype"]) for spec in values[name])

    return Request(
        graph=Path(values["graph"]),
        runtime=values["runtime"],
        sm=tuple(values["sm"]),
        batches=tuple(values["batches"]),
        flags=tuple(values["flags"]),
        inputs=specs("inputs"),
        outputs=specs("outputs"),
        timing_cache=path("timing_cache"),
        plugins=path("plugins"),
    )


if __name__ == "__main__":
    _child(Path(sys.argv[1]))
