"""The GPU tests of the repository, `pytest -m gpu`, with counts from pytest's own report."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path.cwd()


def measure(folder: Path, most_s: float, expression: str = "gpu", where: str = "tests") -> dict[str, Any]:
    """Run them from the repository's root; `figures` counts them, `rows` names those that failed."""
    report = folder / "gpu-tests.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", expression, f"--junitxml={report}", where]
    if find_spec("xdist") is not None:
        command += ["-n", "4", "--dist", "loadfile"]
    log = folder / "gpu-tests.log"
    with log.open("w", encoding="utf-8") as out:
        status = subprocess.run(
            command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, timeout=most_s, check=False
        ).returncode
    cases = list(ElementTree.parse(report).iter("testcase"))
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
