"""The GPU tests of the repository, `pytest -m gpu`, with counts from pytest's own report."""

import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path.cwd()
WHOLE = (0, 1)  # pytest's exit statuses after all tests have run
_SPARE_S = 30.0  # to end in, before whoever called is stopped


def measure(folder: Path, most_s: float, expression: str = "gpu", where: str = "tests") -> dict[str, Any]:
    """Run them from the repository's root; `figures` counts them, `rows` names those that failed.

    A file that cannot be imported is one failure, and the others run. After `most_s` pytest is interrupted, and what
    ran until then counts.
    """
    report = folder / "gpu-tests.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", expression, f"--junitxml={report}", where]
    command.append("--continue-on-collection-errors")
    if find_spec("xdist") is not None:
        command += ["-n", "4", "--dist", "loadfile"]
    log = folder / "gpu-tests.log"
    with log.open("w", encoding="utf-8") as out:
        child = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        try:
            status = child.wait(timeout=max(most_s - _SPARE_S, most_s / 2))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)  # it writes its report
            status = child.wait(timeout=_SPARE_S)
        finally:
            child.kill()
    # One that was interrupted has no name there.
    cases = [case for case in ElementTree.parse(report).iter("testcase") if case.get("name")]
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "figures": {
            "passed": len(cases) - len(failed) - skipped,
            "failed": len(failed),
            "skipped": skipped,
            "exit_status": status,
            "log": log.name,
        },
        "rows": [{"failed": f"{case.get('classname')}::{case.get('name')}"} for case in failed],
    }
