"""The GPU tests of the repository, `pytest -m gpu`, with counts from pytest's own report."""

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path.cwd()
WHOLE = (0, 1)  # pytest's exit statuses after all tests have run
LOST = "the GPU takes no more work of this process since"  # begins the reason of a skip by tests/conftest.py
_SPARE_S = 30.0  # to end in, before whoever called is stopped

Case = ElementTree.Element

_WORKER_GIB = 16  # that a test takes of the GPU's memory, at most
_WORKER_CORES = 2  # that it compiles on


def workers() -> int:
    """Processes that the tests are shared out to."""
    count = len(os.sched_getaffinity(0)) // _WORKER_CORES
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        count = min(count, free // (_WORKER_GIB << 30))
    return max(2, count)


def measure(folder: Path, most_s: float, expression: str = "gpu", where: str = "tests") -> dict[str, Any]:
    """Run them from the repository's root; `figures` counts them, `rows` names those that failed.

    A file that cannot be imported is one failure, and the others run. Tests that found their process's GPU lost to an
    earlier one run again in another process. After `most_s` pytest is interrupted, and what ran until then counts.
    """
    deadline = time.monotonic() + most_s
    log = folder / "gpu-tests.log"
    log.unlink(missing_ok=True)
    cases, status = _run(folder, log, deadline, ["-m", expression, where])
    while (
        status in WHOLE
        and deadline - time.monotonic() > 2 * _SPARE_S
        and (lost := [node for node, case in cases.items() if _found_it_lost(case)])
    ):
        # The first of them finds a GPU that works, so every round leaves fewer.
        again, status = _run(folder, log, deadline, lost)
        cases |= again
    failed = [case for case in cases.values() if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases.values())
    return {
        "figures": {
            "passed": len(cases) - len(failed) - skipped,
            "failed": len(failed),
            "skipped": skipped,
            "exit_status": status or int(bool(failed)),
            "log": log.name,
        },
        "rows": [{"failed": node} for node in sorted(map(_node, failed))],
    }


def _run(folder: Path, log: Path, deadline: float, chosen: list[str]) -> tuple[dict[str, Case], int]:
    """The cases of one call of pytest, by their node ids, and its exit status."""
    report = folder / "gpu-tests.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", f"--rootdir={ROOT}", "--continue-on-collection-errors", *chosen]
    command += [f"--junitxml={report}", "-o", "junit_family=xunit1"]  # the family that says in which file a test is
    if find_spec("xdist") is not None:
        command += ["-n", str(workers()), "--dist", "worksteal"]
    left_s = deadline - time.monotonic()
    with log.open("a", encoding="utf-8") as out:
        # Where this was started in the background SIGINT is ignored, and would be there.
        heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        child = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, preexec_fn=heeding)
        try:
            status = child.wait(timeout=max(left_s - _SPARE_S, left_s / 2))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)  # it writes its report
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=_SPARE_S)
        finally:
            child.kill()
            status = child.wait()
    if not report.exists():  # it did not come to that
        return {}, status
    # One that was interrupted has no name there.
    cases = [case for case in ElementTree.parse(report).iter("testcase") if case.get("name")]
    return {_node(case): case for case in cases}, status


def _node(case: Case) -> str:
    """As pytest takes it; of a file that could not be imported, its module."""
    file = case.get("file")
    return f"{file}::{case.get('name')}" if file else f"{case.get('classname')}::{case.get('name')}"


def _found_it_lost(case: Case) -> bool:
    skip = case.find("skipped")
    return skip is not None and LOST in (skip.get("message") or "")
